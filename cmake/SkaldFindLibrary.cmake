# skald_find_library(NAME PKG module HEADER file LIBRARY name): body of the Find modules beside this file. pkg-config, if
# it is there, only hints where to look. Sets NAME_FOUND and the imported target NAME::NAME.
macro(skald_find_library name)
  cmake_parse_arguments(skald_find "" "PKG;HEADER;LIBRARY" "" ${ARGN})
  find_package(PkgConfig QUIET)
  if(PkgConfig_FOUND)
    pkg_check_modules(PC_${name} QUIET ${skald_find_PKG})
  endif()
  find_path(${name}_INCLUDE_DIR ${skald_find_HEADER} HINTS ${PC_${name}_INCLUDEDIR} ${PC_${name}_INCLUDE_DIRS})
  find_library(${name}_LIBRARY ${skald_find_LIBRARY} HINTS ${PC_${name}_LIBDIR} ${PC_${name}_LIBRARY_DIRS})
  mark_as_advanced(${name}_INCLUDE_DIR ${name}_LIBRARY)

  include(FindPackageHandleStandardArgs)
  find_package_handle_standard_args(${name} REQUIRED_VARS ${name}_LIBRARY ${name}_INCLUDE_DIR
                                    VERSION_VAR PC_${name}_VERSION)
  if(${name}_FOUND AND NOT TARGET ${name}::${name})
    add_library(${name}::${name} UNKNOWN IMPORTED)
    set_target_properties(${name}::${name} PROPERTIES IMPORTED_LOCATION ${${name}_LIBRARY}
                          INTERFACE_INCLUDE_DIRECTORIES ${${name}_INCLUDE_DIR})
  endif()
endmacro()
