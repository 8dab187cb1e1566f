# Installs the library, its headers, the bundled model, a CMake package and a pkg-config file. The prefix can be moved:
# every path in what is installed is relative to the file that names it.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(skald_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/skald)
set(skald_models_dir ${CMAKE_INSTALL_DATADIR}/skald/models)
set(skald_components cpu)

install(TARGETS skald EXPORT skaldTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
        FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT skaldTargets NAMESPACE skald:: DESTINATION ${skald_cmake_dir})
install(FILES ${PROJECT_SOURCE_DIR}/models/skald-tiny-q8_0.gguf ${PROJECT_SOURCE_DIR}/models/README.md
        DESTINATION ${skald_models_dir})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/skald)

# A static archive leaves its own dependencies to be linked by the consumer; a shared library brings them.
get_target_property(skald_library_type skald TYPE)
set(skald_static OFF)
if(skald_library_type STREQUAL STATIC_LIBRARY)
  set(skald_static ON)
  install(FILES ${PROJECT_SOURCE_DIR}/cmake/FindSkaldPCRE2.cmake ${PROJECT_SOURCE_DIR}/cmake/FindSkaldUtf8proc.cmake
                ${PROJECT_SOURCE_DIR}/cmake/SkaldFindLibrary.cmake
          DESTINATION ${skald_cmake_dir})
endif()

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/skaldConfig.cmake.in ${PROJECT_BINARY_DIR}/skaldConfig.cmake
                              INSTALL_DESTINATION ${skald_cmake_dir} PATH_VARS skald_models_dir)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/skaldConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/skaldConfig.cmake ${PROJECT_BINARY_DIR}/skaldConfigVersion.cmake
        DESTINATION ${skald_cmake_dir})

# pkg-config
if(IS_ABSOLUTE ${CMAKE_INSTALL_LIBDIR})
  set(skald_pc_prefix ${CMAKE_INSTALL_PREFIX})
  set(skald_pc_libdir ${CMAKE_INSTALL_LIBDIR})
else()
  set(pc_dir /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  cmake_path(RELATIVE_PATH pc_dir BASE_DIRECTORY /p OUTPUT_VARIABLE pc_dir)
  string(REGEX REPLACE "[^/]+" ".." pc_up ${pc_dir})
  set(skald_pc_prefix "\${pcfiledir}/${pc_up}")
  set(skald_pc_libdir "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
endif()
if(IS_ABSOLUTE ${CMAKE_INSTALL_INCLUDEDIR})
  set(skald_pc_includedir ${CMAKE_INSTALL_INCLUDEDIR})
else()
  set(skald_pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
if(skald_static)
  set(skald_pc_requires "Requires: fmt, tbb, libpcre2-8, libutf8proc")
  set(skald_pc_private_libs " -pthread")
else()
  set(skald_pc_requires "Requires.private: fmt, tbb, libpcre2-8, libutf8proc")
  set(skald_pc_private_libs "")
endif()
configure_file(${PROJECT_SOURCE_DIR}/cmake/skald.pc.in ${PROJECT_BINARY_DIR}/skald.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/skald.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
