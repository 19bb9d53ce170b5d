# The operators on CUDA tensors: a library beside _ops, where there is nvcc. Machine code for sm_80 and sm_90, PTX for later
# ones.
set(cuda_kernel_sources "")
foreach(kernel bitmap_decode block4_decode dense_decode dense_gemm quantize sparse24_gemm)
  list(APPEND cuda_kernel_sources ${PROJECT_SOURCE_DIR}/csrc/kernels/cuda/${kernel}.cu)
endforeach()

find_program(MEMPOOL_NVCC nvcc
  HINTS "${MEMPOOL_CUDA_INCLUDE}/../bin" "${torch_folder}/../nvidia/cu13/bin" ENV CUDA_HOME ENV CUDA_PATH
  PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(MEMPOOL_CUDA_EMULATOR)
  set_source_files_properties(${cuda_kernel_sources} PROPERTIES LANGUAGE CXX
    COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas;-ffp-contract=off")
  set(cuda_kernel_objects ${cuda_kernel_sources} ${PROJECT_SOURCE_DIR}/tests/cuda_emulator/emulator.cpp)
elseif(MEMPOOL_NVCC)
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
elseif(MEMPOOL_CUDA STREQUAL "on")
  message(FATAL_ERROR
    "MEMPOOL_CUDA=on, and there is no nvcc.\n"
    "Run:  pip install nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-cccl    or name one:  -DMEMPOOL_NVCC=...")
else()
  message(STATUS "No nvcc: packed layers will run on the CPU alone (pip install nvidia-cuda-nvcc nvidia-nvvm "
                 "nvidia-cuda-cccl).")
  return()
endif()

add_library(_ops_cuda MODULE ../torch/cuda_linear_ops.cpp ../kernels/cuda/choices.cpp ../kernels/cuda/linear.cpp
  ../kernels/cuda/pack_sparse24.cpp ${cuda_kernel_objects})
set_target_properties(_ops_cuda PROPERTIES PREFIX "" INSTALL_RPATH "$ORIGIN" BUILD_WITH_INSTALL_RPATH ON
  INTERPROCEDURAL_OPTIMIZATION OFF)
if(MEMPOOL_CUDA_EMULATOR)
  target_include_directories(_ops_cuda BEFORE PRIVATE ${PROJECT_SOURCE_DIR}/tests/cuda_emulator)
  set_source_files_properties(${cuda_kernel_sources} PROPERTIES
    INCLUDE_DIRECTORIES ${PROJECT_SOURCE_DIR}/tests/cuda_emulator/include)
endif()
target_include_directories(_ops_cuda PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
target_include_directories(_ops_cuda SYSTEM PRIVATE "${MEMPOOL_CUDA_INCLUDE}")
# The runtime's own symbols come from what torch has loaded.
target_link_libraries(_ops_cuda PRIVATE torch_c10 mempool mempool_flags "${torch_folder}/lib/libtorch_cpu.so"
  "${torch_folder}/lib/libc10_cuda.so" "${torch_folder}/lib/libtorch_cuda.so")
install(TARGETS _ops_cuda LIBRARY DESTINATION mempool)
