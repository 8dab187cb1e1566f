# Finds PCRE2 (8 bit) as SkaldPCRE2::SkaldPCRE2, with or without pkg-config. Installed beside skaldConfig.cmake, since a
# statically linked skald needs it again and the distribution's package brings no CMake package of its own.
include(${CMAKE_CURRENT_LIST_DIR}/SkaldFindLibrary.cmake)
skald_find_library(SkaldPCRE2 PKG libpcre2-8 HEADER pcre2.h LIBRARY pcre2-8)
