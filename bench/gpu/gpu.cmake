# Programs that check and measure a GPU, included by CMakeLists.txt; bench/gpu/pack.sh packs them for another machine.
# They have the engine but not the CPU's kernels, so they need neither oneDNN nor BLAS, and they link the small
# libraries statically. They are built with the tests, and tests/e2e/gpu_call.sh runs them on the shim. The sanitizers
# see the same sources in the tests themselves.
set(FEDLORA_GPU_STATIC "")
foreach(name IN ITEMS jansson sodium pcre2-8 utf8proc inih)
  find_library(FEDLORA_STATIC_${name} NAMES lib${name}.a ${name} REQUIRED)
  list(APPEND FEDLORA_GPU_STATIC ${FEDLORA_STATIC_${name}})
endforeach()

function(fedlora_gpu_program name)
  add_executable(${name} ${ARGN} bench/gpu/gpu.c bench/gpu/no_cpu.c)
  set(archives fedlora_engine fedlora_agg fedlora_privacy fedlora_kernels fedlora_base)
  if(NOT FEDLORA_TESTS OR FEDLORA_THREADS OR FEDLORA_FUZZ OR FEDLORA_SANITIZE)
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
  add_dependencies(${name} ${archives})
  list(TRANSFORM archives REPLACE "(.+)" "$<TARGET_FILE:\\1>")
  target_link_libraries(${name} PRIVATE -Wl,--start-group ${archives} -Wl,--end-group ${FEDLORA_GPU_STATIC}
    Threads::Threads ${CMAKE_DL_LIBS} m -Wl,-Map=${name}.map) # pack.sh reads from the map which sources are linked
  set_property(TARGET ${name} PROPERTY LINK_DEPENDS ${archives})
endfunction()

fedlora_gpu_program(bench_gpu bench/gpu/train.c)

# The tests of the operations and the golden cases, with the plain checks in place of Criterion.
file(GLOB checks CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/parity/operations*.c)
list(APPEND checks tests/golden/engine.c tests/support/support.c tests/cuda_on_cpu/plain/plain.c)
fedlora_gpu_program(cuda_check bench/gpu/check.c bench/gpu/check_digest.c bench/gpu/check_rows.c
  bench/gpu/check_time.c ${checks})
target_include_directories(cuda_check BEFORE PRIVATE tests/cuda_on_cpu/plain)
target_compile_definitions(cuda_check PRIVATE OPERATIONS_LOADED ${FEDLORA_BACKEND_BUILD} FEDLORA_SOURCE_DIR="." FEDLORA_BUILD_DIR=".")
target_compile_options(cuda_check PRIVATE -Wno-missing-prototypes)
set_property(SOURCE tests/cuda_on_cpu/plain/plain.c PROPERTY COMPILE_DEFINITIONS main=plain_main)
