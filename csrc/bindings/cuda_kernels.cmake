# The operators on CUDA tensors: a library beside _ops, where there is nvcc. Machine code for sm_80 and sm_90, PTX for later
# ones.
set(cuda_kernel_sources "")
foreach(kernel bitmap_decode block4_decode dense_decode dense_gemm expand quantize
        sparse24_decode sparse24_gemm)
  list(APPEND cuda_kernel_sources ${PROJECT_SOURCE_DIR}/csrc/kernels/cuda/${kernel}.cu)
endforeach()

if(MEMPOOL_NVCC AND NOT EXISTS "${MEMPOOL_NVCC}")
  unset(MEMPOOL_NVCC CACHE)  # found by an earlier build, and gone
endif()
set(nvcc_places "")
foreach(folder IN LISTS mempool_cuda_include)
  list(APPEND nvcc_places "${folder}/../bin")
endforeach()
foreach(folder IN LISTS torch_nvidia_folders)
  list(APPEND nvcc_places "${folder}/cu13/bin")
endforeach()
find_program(MEMPOOL_NVCC nvcc HINTS ${nvcc_places} ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
mempool_check_nvcc(nvcc_problem)

function(mempool_cuda_ops name)
  add_library(${name} MODULE ../torch/cuda_linear_ops.cpp ../kernels/cuda/choices.cpp ../kernels/cuda/linear.cpp
    ${ARGN})
  set_target_properties(${name} PROPERTIES PREFIX "" INSTALL_RPATH "$ORIGIN" BUILD_WITH_INSTALL_RPATH ON
    INTERPROCEDURAL_OPTIMIZATION OFF)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_include_directories(${name} SYSTEM PRIVATE ${mempool_cuda_include})
  # The runtime's own symbols come from what torch has loaded.
  target_link_libraries(${name} PRIVATE torch_c10 mempool mempool_flags "${torch_folder}/lib/libtorch_cpu.so"
    "${torch_folder}/lib/libc10_cuda.so" "${torch_folder}/lib/libtorch_cuda.so")
endfunction()

if(NOT nvcc_problem)
  set(cuda_kernel_objects "")
  foreach(source IN LISTS cuda_kernel_sources)
    get_filename_component(kernel ${source} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${kernel}.cu.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${MEMPOOL_NVCC} -std=c++20 -O3 --expt-relaxed-constexpr -ccbin ${CMAKE_CXX_COMPILER}
        -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90
        -gencode arch=compute_90,code=compute_90 -Xcompiler=-fPIC,-fvisibility=hidden
        -I${PROJECT_SOURCE_DIR}/csrc -MD -MF ${object}.d -c ${source} -o ${object}
      DEPENDS ${source} DEPFILE ${object}.d COMMENT "nvcc ${kernel}.cu" VERBATIM)
    list(APPEND cuda_kernel_objects ${object})
  endforeach()
endif()

if(MEMPOOL_CUDA_EMULATOR)
  # Tests have the emulated library in the package, and that of nvcc beside it.
  if(NOT nvcc_problem)
    mempool_cuda_ops(_ops_nvcc ${cuda_kernel_objects})
    # It is never installed: it finds libmempool.so where that was built.
    set_target_properties(_ops_nvcc PROPERTIES EXCLUDE_FROM_ALL ON BUILD_WITH_INSTALL_RPATH OFF)
  endif()
  set_source_files_properties(${cuda_kernel_sources} PROPERTIES LANGUAGE CXX
    COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas;-ffp-contract=off"
    INCLUDE_DIRECTORIES ${PROJECT_SOURCE_DIR}/tests/cuda_emulator/include)
  mempool_cuda_ops(_ops_cuda ${cuda_kernel_sources} ${PROJECT_SOURCE_DIR}/tests/cuda_emulator/emulator.cpp)
  target_include_directories(_ops_cuda BEFORE PRIVATE ${PROJECT_SOURCE_DIR}/tests/cuda_emulator)
elseif(NOT nvcc_problem)
  mempool_cuda_ops(_ops_cuda ${cuda_kernel_objects})
elseif(MEMPOOL_CUDA STREQUAL "on")
  message(FATAL_ERROR " MEMPOOL_CUDA=on, and ${nvcc_problem}.")
else()
  set(mempool_kernels_problem "${nvcc_problem}")
  message(STATUS "Packed layers will run on the CPU alone: ${mempool_kernels_problem}.")
  return()
endif()
install(TARGETS _ops_cuda LIBRARY DESTINATION mempool)
