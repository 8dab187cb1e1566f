# Compiles the sources of a folder of src/kernels (isa/, mostly) for an instruction set, each with its own flags and its own namespace.
# The flags never leave these object libraries.
function(skald_kernel_library isa folder)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/kernels/${folder}/*.cpp)
  if(NOT sources)
    return()
  endif()
  add_library(skald_kernels_${isa} OBJECT ${sources})
  target_compile_definitions(skald_kernels_${isa} PRIVATE SKALD_ISA=${isa} SKALD_ISA_${isa}=1)
  # Never below -O1: at -O0 inline functions become weak symbols that the linker may share between instruction sets.
  target_compile_options(skald_kernels_${isa} PRIVATE $<$<CONFIG:Debug>:-O1> ${ARGN} -fno-fast-math -ffp-contract=off
                         -fno-exceptions -fno-rtti
                         # GCC's AVX-512 intrinsics hand on undefined vectors on purpose (GCC bug 105593).
                         $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized -Wno-maybe-uninitialized>
                         # GCC would split each walk over blocks in two at the point where its prefetches jump.
                         $<$<CXX_COMPILER_ID:GNU>:-fno-split-loops>)
  target_include_directories(skald_kernels_${isa} PRIVATE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(skald_kernels_${isa} PRIVATE skald_build_options)
  set_target_properties(skald_kernels_${isa} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
                        VISIBILITY_INLINES_HIDDEN ON SKALD_KERNELS ON)
  target_sources(skald PRIVATE $<TARGET_OBJECTS:skald_kernels_${isa}>)
  set_property(GLOBAL APPEND PROPERTY SKALD_KERNEL_ISAS ${isa})
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  skald_kernel_library(baseline isa -mno-avx -mno-sse3)
  skald_kernel_library(avx2 isa -mavx2 -mfma -mf16c -mbmi2 -mno-avx512f)
  if(SKALD_AVX512)
  skald_kernel_library(avx512 isa -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mfma -mf16c -mbmi2
                       -mprefer-vector-width=512 -mno-avx512vnni)
  skald_kernel_library(avx512vnni isa -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mavx512vnni -mfma -mf16c
                       -mbmi2 -mprefer-vector-width=512)
  # Only what differs from avx512vnni.
  skald_kernel_library(avx512bf16 isa_bf16 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mavx512vnni
                       -mavx512bf16 -mfma -mf16c -mbmi2 -mprefer-vector-width=512)
  else()
    target_compile_definitions(skald PRIVATE SKALD_NO_AVX512)
  endif()
else()
  skald_kernel_library(baseline isa)
endif()
