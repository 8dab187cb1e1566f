# Finds utf8proc as SkaldUtf8proc::SkaldUtf8proc, with or without pkg-config. See FindSkaldPCRE2.cmake.
include(${CMAKE_CURRENT_LIST_DIR}/SkaldFindLibrary.cmake)
skald_find_library(SkaldUtf8proc PKG libutf8proc HEADER utf8proc.h LIBRARY utf8proc)
