# The tests, included by CMakeLists.txt: every tests/FOLDER/NAME.c becomes the program test_FOLDER_NAME, and each
# program and each script tests/e2e/NAME.sh is one test of ctest (exit status 77: skipped).

# tests/run.sh adds to this: it counts the tests in a Criterion program and fails it for a leak, which the processes
# that Criterion starts would otherwise only print.
set(FEDLORA_TEST_ENVIRONMENT FEDLORA_BUILD_DIR=${CMAKE_BINARY_DIR} OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
  LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0)
if(FEDLORA_THREADS) # archer tells the sanitizer about OpenMP's barriers; without it every parallel loop is a race
  get_filename_component(omp_folder ${OpenMP_omp_LIBRARY} REALPATH)
  get_filename_component(omp_folder ${omp_folder} DIRECTORY)
  find_library(ARCHER_LIBRARY archer HINTS ${omp_folder} REQUIRED)
  list(APPEND FEDLORA_TEST_ENVIRONMENT OMP_TOOL_LIBRARIES=${ARCHER_LIBRARY}
    TSAN_OPTIONS=ignore_noninstrumented_modules=1)
endif()
function(fedlora_ctest label name)
  add_test(NAME ${name} COMMAND ${ARGN} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS ${label} SKIP_RETURN_CODE 77 TIMEOUT 900
    ENVIRONMENT "${FEDLORA_TEST_ENVIRONMENT}")
endfunction()

function(fedlora_link_all program)
  foreach(library IN LISTS FEDLORA_LIBRARIES)
    target_link_libraries(${program} PRIVATE fedlora_${library})
  endforeach()
endfunction()

# Helpers that tests share; the fake members also need the messages and the methods.
function(fedlora_support_libraries)
  pkg_check_modules(CRITERION REQUIRED IMPORTED_TARGET criterion)
  file(GLOB support CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/support/*.c)
  set(fakes ${support})
  list(FILTER support EXCLUDE REGEX "/fake_")
  list(FILTER fakes INCLUDE REGEX "/fake_")
  add_library(fedlora_support STATIC ${support})
  target_link_libraries(fedlora_support PUBLIC fedlora_base PkgConfig::CRITERION)
  target_compile_definitions(fedlora_support PUBLIC FEDLORA_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
    FEDLORA_BUILD_DIR="${CMAKE_BINARY_DIR}")
  add_library(fedlora_fake STATIC ${fakes})
  target_link_libraries(fedlora_fake PUBLIC fedlora_support fedlora_coordinator)
  target_link_libraries(bench_coordinator PRIVATE fedlora_fake)
  target_link_libraries(bench_load PRIVATE fedlora_fake PkgConfig::NGHTTP2)
endfunction()

# Criterion programs. A test of one file links the library that holds the file; tests of more than one file
# (golden, e2e, fault) link all libraries.
function(fedlora_criterion_test folder stem)
  set(program test_${folder}_${stem})
  add_executable(${program} ${CMAKE_SOURCE_DIR}/tests/${folder}/${stem}.c)
  set(library "")
  foreach(candidate IN LISTS FEDLORA_LIBRARIES)
    get_target_property(sources fedlora_${candidate} SOURCES)
    if(folder STREQUAL "unit" AND "${sources}" MATCHES "/${stem}\\.c(;|$)")
      set(library fedlora_${candidate})
    endif()
  endforeach()
  if(library)
    target_link_libraries(${program} PRIVATE fedlora_support ${library})
  else()
    target_link_libraries(${program} PRIVATE fedlora_support fedlora_fake)
    fedlora_link_all(${program})
  endif()
  target_compile_options(${program} PRIVATE -Wno-missing-prototypes)
  fedlora_ctest(${folder} ${program} ${program})
endfunction()

# Fuzz targets: with driver.c, which mutates their seeds a fixed number of times, or with libFuzzer
# (tests/fuzz/campaign.sh).
function(fedlora_fuzz_target stem)
  set(program test_fuzz_${stem})
  add_executable(${program} ${CMAKE_SOURCE_DIR}/tests/fuzz/${stem}.c)
  fedlora_link_all(${program})
  target_compile_definitions(${program} PRIVATE FEDLORA_SOURCE_DIR="${CMAKE_SOURCE_DIR}" FUZZ_NAME="${stem}")
  target_compile_options(${program} PRIVATE -Wno-unused-but-set-variable) # sums whose only purpose is to read bytes
  if(FEDLORA_FUZZ)
    target_link_options(${program} PRIVATE -fsanitize=fuzzer)
    fedlora_ctest(fuzz ${program} ${program} -runs=1000)
  else()
    target_sources(${program} PRIVATE ${CMAKE_SOURCE_DIR}/tests/fuzz/driver.c)
    fedlora_ctest(fuzz ${program} ${program})
  endif()
endfunction()

# Plain programs that run threads against each other. They must not load gRPC or Criterion, so libraries that no
# symbol needs are left out.
function(fedlora_threads_test stem)
  set(program test_threads_${stem})
  add_executable(${program} ${CMAKE_SOURCE_DIR}/tests/threads/${stem}.c)
  target_link_options(${program} PRIVATE -Wl,--as-needed)
  fedlora_link_all(${program})
  target_compile_definitions(${program} PRIVATE FEDLORA_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  fedlora_ctest(threads ${program} ${program})
endfunction()

function(fedlora_tests_of folder command) # command: one of the functions above
  file(GLOB tests CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${folder}/*.c)
  list(FILTER tests EXCLUDE REGEX "/(fuzz/driver|attack/fault)\\.c$")
  foreach(test IN LISTS tests)
    get_filename_component(stem ${test} NAME_WE)
    cmake_language(CALL ${command} ${ARGN} ${stem})
  endforeach()
endfunction()

if(NOT FEDLORA_FUZZ AND NOT FEDLORA_RACE)
  fedlora_tests_of(threads fedlora_threads_test)
endif()
if(NOT FEDLORA_THREADS AND NOT FEDLORA_RACE)
  fedlora_tests_of(fuzz fedlora_fuzz_target)
endif()
if(NOT FEDLORA_THREADS AND NOT FEDLORA_FUZZ AND NOT FEDLORA_RACE)
  fedlora_support_libraries()
  foreach(folder IN ITEMS unit parity golden fault e2e attack)
    fedlora_tests_of(${folder} fedlora_criterion_test ${folder})
  endforeach()
  add_library(fedlora_fault SHARED ${CMAKE_SOURCE_DIR}/tests/attack/fault.c) # for LD_PRELOAD
  target_compile_options(fedlora_fault PRIVATE -Wno-missing-prototypes)
  target_link_libraries(fedlora_fault PRIVATE ${CMAKE_DL_LIBS})
  file(GLOB scripts CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/e2e/*.sh)
  foreach(script IN LISTS scripts)
    get_filename_component(stem ${script} NAME_WE)
    fedlora_ctest(e2e e2e_${stem} bash ${script})
  endforeach()
endif()

if(NOT FEDLORA_THREADS AND NOT FEDLORA_FUZZ)
  enable_language(CXX) # before the folder, so that programs of this one can link it
  add_subdirectory(${CMAKE_SOURCE_DIR}/tests/cuda_on_cpu ${CMAKE_BINARY_DIR}/cuda_on_cpu)
endif()

# Lines and branches that the tests have run since the build folder was made, by file; needs gcovr.
if(FEDLORA_COVERAGE)
  add_custom_target(coverage_summary
    COMMAND gcovr --root ${CMAKE_SOURCE_DIR} --exclude ".*/(tests|bench|build)/.*"
      --exclude-unreachable-branches --print-summary --sort-uncovered -o coverage.txt
    COMMAND ${CMAKE_COMMAND} -E echo "by file: ${CMAKE_BINARY_DIR}/coverage.txt"
    WORKING_DIRECTORY ${CMAKE_BINARY_DIR} VERBATIM)
endif()
