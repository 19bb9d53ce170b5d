# What links torch, for one release of it. torch's C++ classes change between minor releases, and not within one.

set(newest_tested_torch 2.15)

# Sets torch_version, torch_folder, torch_new_abi, torch_cuda_version and torch_nvidia_folders of the torch package in
# `folder`; "": of the one that the interpreter imports. torch's own CMake files pull in far more than is needed.
macro(mempool_read_torch folder)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/torch_facts.py" ${folder}
    OUTPUT_VARIABLE torch_said ERROR_VARIABLE torch_error RESULT_VARIABLE torch_status OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REGEX MATCH "{[^\n]*}$" torch_facts "${torch_said}")  # importing torch may have printed, too
  if(NOT torch_status EQUAL 0 OR NOT torch_facts)
    message(FATAL_ERROR "Importing torch ended ${Python_EXECUTABLE}: ${torch_status}.\n${torch_error}")
  endif()
  string(JSON torch_problem GET "${torch_facts}" problem)
  if(torch_problem)
    message(FATAL_ERROR " ${torch_problem}")  # CMake breaks no line that begins with a blank
  endif()
  string(JSON torch_version GET "${torch_facts}" version)
  string(JSON torch_folder GET "${torch_facts}" folder)
  string(JSON torch_new_abi GET "${torch_facts}" new_abi)
  string(JSON torch_cuda_version GET "${torch_facts}" cuda)
  string(JSON torch_nvidia_folders GET "${torch_facts}" nvidia)
endmacro()

# Everything of one torch: _torch_cpu and _ops, and where they can be built _torch_cuda and _ops_cuda.
function(mempool_torch_shims folder)
  mempool_read_torch("${folder}")
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" torch_minor "${torch_version}")
  set(shims "${CMAKE_CURRENT_BINARY_DIR}/torch-${torch_minor}")
  if(TARGET torch_c10-${torch_minor})
    message(FATAL_ERROR " MEMPOOL_TORCHES names two torches of release ${torch_minor}: one serves for all of its patches.")
  endif()
  if(torch_minor VERSION_GREATER newest_tested_torch)
    message(STATUS
      "torch ${torch_minor} is newer than ${newest_tested_torch}, the newest that mempool was tested with; it is built for it.")
  endif()

  add_library(torch_c10-${torch_minor} INTERFACE)
  target_include_directories(torch_c10-${torch_minor} SYSTEM INTERFACE "${torch_folder}/include")
  target_link_libraries(torch_c10-${torch_minor} INTERFACE "${torch_folder}/lib/libc10.so" mempool mempool_flags)
  target_compile_definitions(torch_c10-${torch_minor} INTERFACE _GLIBCXX_USE_CXX11_ABI=${torch_new_abi})

  mempool_choose_cuda()
  if(MEMPOOL_CUDA STREQUAL "on" AND mempool_cuda_problem)
    message(FATAL_ERROR " MEMPOOL_CUDA=on, and the CUDA half cannot be built: ${mempool_cuda_problem}.")
  endif()
  set(mempool_kernels_problem "${mempool_cuda_problem}")
  if(mempool_cuda_problem)
    message(STATUS "mempool is built for the CPU alone: ${mempool_cuda_problem}.")
  else()
    mempool_torch_cuda()
    include(cuda_kernels.cmake)
  endif()
  configure_file(build_facts.h.in "${shims}/build_facts.h" @ONLY)

  mempool_shim(_torch_cpu torch_cpu_module.cpp ../torch/cpu_allocator.cpp)
  target_include_directories(_torch_cpu-${torch_minor} PRIVATE "${shims}")  # build_facts.h
  # The operators under torch.ops.mempool: a library that torch loads, no module of Python.
  mempool_shim(_ops ../torch/linear_ops.cpp ../torch/pack_ops.cpp ../torch/threads.cpp)
  if(torch_minor VERSION_LESS 2.10)  # threads.cpp
    target_compile_options(_ops-${torch_minor} PRIVATE -fopenmp)
    target_link_options(_ops-${torch_minor} PRIVATE -fopenmp)
  endif()
  target_link_libraries(_ops-${torch_minor} PRIVATE "${torch_folder}/lib/libtorch_cpu.so")
endfunction()

# A module of Python where its name ends so, else a plain library; in the folder of its torch.
function(mempool_torch_module name)
  set(target ${name}-${torch_minor})
  if(name MATCHES "^_torch_")
    pybind11_add_module(${target} MODULE ${ARGN})
  else()
    add_library(${target} MODULE ${ARGN})
    set_target_properties(${target} PROPERTIES PREFIX "")
  endif()
  target_link_libraries(${target} PRIVATE torch_c10-${torch_minor})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${name} LIBRARY_OUTPUT_DIRECTORY "${shims}")
endfunction()

# Such a module as a part of the package.
function(mempool_shim name)
  mempool_torch_module(${name} ${ARGN})
  mempool_place(${name}-${torch_minor} mempool/_shims/torch-${torch_minor} "/../..")
endfunction()

# torch's CUDA build, and the headers of its CUDA: those of a toolkit, or of the packages nvidia-cuda-runtime and -crt. The
# runtime's own symbols come from what torch has loaded.
function(mempool_torch_cuda)
  mempool_shim(_torch_cuda torch_cuda_module.cpp
    ../torch/cuda_allocator.cpp ../torch/cuda_capture.cpp ../torch/cuda_earlier.cpp ../torch/cuda_foreign.cpp
    ../torch/cuda_fronts.cpp ../torch/cuda_functions.cpp ../torch/cuda_graphs.cpp ../torch/cuda_history.cpp
    ../torch/cuda_ipc.cpp ../torch/cuda_pools.cpp ../torch/cuda_reports.cpp ../torch/cuda_settings.cpp
    ../torch/cuda_source_calls.cpp ../torch/cuda_switch.cpp ../torch/pinned_allocator.cpp ../torch/pinned_graphs.cpp)
  # In torch 2.11 the function that hears of settings at run time is a static of an inline function in a header (from 2.13 on it
  # is not). It is one for the process where each library that has it marks it as unique; link-time optimization drops the mark.
  set_source_files_properties(../torch/cuda_settings.cpp PROPERTIES COMPILE_OPTIONS -fno-lto)
  target_include_directories(_torch_cuda-${torch_minor} SYSTEM PRIVATE ${mempool_cuda_include})
  target_link_libraries(_torch_cuda-${torch_minor} PRIVATE
    "${torch_folder}/lib/libc10_cuda.so" "${torch_folder}/lib/libtorch_cuda.so" "${torch_folder}/lib/libtorch_cpu.so")
endfunction()
