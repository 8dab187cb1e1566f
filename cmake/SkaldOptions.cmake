# Compile options of everything that is built here; none of them reaches a consumer.
if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

add_library(skald_build_options INTERFACE)
target_compile_features(skald_build_options INTERFACE cxx_std_20)
target_compile_options(skald_build_options INTERFACE -Wall -Wextra -ffp-contract=off)
# GCC 12 reports std::string concatenation as overlapping memcpy (GCC bug 105651).
target_compile_options(skald_build_options INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)
# GCC 12 at -O3 takes members of option aggregates for uninitialized where an initializer may throw (as GCC bug 105562).
target_compile_options(skald_build_options INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
if(SKALD_WERROR)
  target_compile_options(skald_build_options INTERFACE -Werror)
endif()
# Kernels take minutes to compile with the address sanitizer, and their tests put every buffer beside a guard page.
set(SKALD_SANITIZE_KERNELS OFF CACHE BOOL "Instrument the kernels with the address sanitizer, too")
set(skald_instrumented "$<NOT:$<BOOL:$<TARGET_PROPERTY:SKALD_KERNELS>>>")
if(SKALD_SANITIZE)
  set(flags -fsanitize=${SKALD_SANITIZE} -fno-sanitize-recover=all)
  if(SKALD_SANITIZE MATCHES "address" AND NOT SKALD_SANITIZE_KERNELS)
    set(flags "$<${skald_instrumented}:${flags}>")
  endif()
  target_compile_options(skald_build_options INTERFACE "${flags}" -fno-omit-frame-pointer)
  target_link_options(skald_build_options INTERFACE -fsanitize=${SKALD_SANITIZE})
endif()
if(SKALD_BUILD_FUZZERS)
  # Not the kernels: no fuzzer reaches them.
  target_compile_options(skald_build_options INTERFACE
    "$<${skald_instrumented}:-fsanitize=fuzzer-no-link;-fsanitize=address,undefined;-fno-sanitize-recover=all>"
    -fno-omit-frame-pointer)
  target_link_options(skald_build_options INTERFACE -fsanitize=address,undefined)
endif()
