# The operators on CUDA tensors: a library beside _ops, where there is nvcc. Machine code for sm_80 and sm_90, PTX for later
# ones.
set(cuda_kernel_sources "")
foreach(kernel bitmap_decode block4_decode dense_decode dense_gemm expand quantize
        sparse24_decode sparse24_gemm)
  list(APPEND cuda_kernel_sources ${PROJECT_SOURCE_DIR}/csrc/kernels/cuda/${kernel}.cu)
endforeach()

find_program(MEMPOOL_NVCC nvcc
  HINTS "${MEMPOOL_CUDA_INCLUDE}/../bin" "${torch_folder}/../nvidia/cu13/bin" ENV CUDA_HOME ENV CUDA_PATH
  PATHS /usr/local/cuda PATH_SUFFIXES bin)
set(cuda_advice "pip install")
foreach(package nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-cccl)
  string(APPEND cuda_advice " '${package}==${torch_cuda_version}.*'")
endforeach()
string(APPEND cuda_advice "    or name one:  -DMEMPOOL_NVCC=...")
# mma.sp::ordered_metadata came with 12.5.
if(MEMPOOL_NVCC)
  execute_process(COMMAND ${MEMPOOL_NVCC} --version OUTPUT_VARIABLE nvcc_says ERROR_QUIET)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" nvcc_release "${nvcc_says}")
  set(nvcc_version "${CMAKE_MATCH_1}")
  if(NOT nvcc_release OR nvcc_version VERSION_LESS 12.5)
    set(nvcc_problem "${MEMPOOL_NVCC} is version '${nvcc_version}', and 12.5 is needed")
  endif()
else()
  set(nvcc_problem "there is no nvcc")
endif()

function(mempool_cuda_ops name)
  add_library(${name} MODULE ../torch/cuda_linear_ops.cpp ../kernels/cuda/choices.cpp ../kernels/cuda/linear.cpp
    ${ARGN})
  set_target_properties(${name} PROPERTIES PREFIX "" INSTALL_RPATH "$ORIGIN" BUILD_WITH_INSTALL_RPATH ON
    INTERPROCEDURAL_OPTIMIZATION OFF)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_include_directories(${name} SYSTEM PRIVATE "${MEMPOOL_CUDA_INCLUDE}")
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
    set_target_properties(_ops_nvcc PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
  set_source_files_properties(${cuda_kernel_sources} PROPERTIES LANGUAGE CXX
    COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas;-ffp-contract=off"
    INCLUDE_DIRECTORIES ${PROJECT_SOURCE_DIR}/tests/cuda_emulator/include)
  mempool_cuda_ops(_ops_cuda ${cuda_kernel_sources} ${PROJECT_SOURCE_DIR}/tests/cuda_emulator/emulator.cpp)
  target_include_directories(_ops_cuda BEFORE PRIVATE ${PROJECT_SOURCE_DIR}/tests/cuda_emulator)
elseif(NOT nvcc_problem)
  mempool_cuda_ops(_ops_cuda ${cuda_kernel_objects})
elseif(MEMPOOL_CUDA STREQUAL "on")
  message(FATAL_ERROR "MEMPOOL_CUDA=on, and ${nvcc_problem}.\nRun:  ${cuda_advice}")
else()
  message(STATUS "Packed layers will run on the CPU alone: ${nvcc_problem}. Run:  ${cuda_advice}")
  return()
endif()
install(TARGETS _ops_cuda LIBRARY DESTINATION mempool)
