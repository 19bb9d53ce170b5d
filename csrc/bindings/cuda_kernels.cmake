# The operators on CUDA tensors: a library beside _ops, where there is nvcc. Machine code for each of MEMPOOL_CUDA_ARCHITECTURES,
# PTX of the last one for later GPUs.
set(MEMPOOL_CUDA_ARCHITECTURES "80;90" CACHE STRING "Compute capabilities without the dot, ascending, none below 80")
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
  mempool_torch_module(${name} ../torch/cuda_linear_ops.cpp ../kernels/cuda/choices.cpp ../kernels/cuda/linear.cpp ${ARGN})
  set(target ${name}-${torch_minor})
  set_target_properties(${target} PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_include_directories(${target} SYSTEM PRIVATE ${mempool_cuda_include})
  # The runtime's own symbols come from what torch has loaded.
  target_link_libraries(${target} PRIVATE "${torch_folder}/lib/libtorch_cpu.so"
    "${torch_folder}/lib/libc10_cuda.so" "${torch_folder}/lib/libtorch_cuda.so")
endfunction()

# They link nothing of torch: one set of objects serves all of its releases.
get_property(cuda_kernel_objects GLOBAL PROPERTY mempool_cuda_kernel_objects)
if(NOT nvcc_problem AND NOT cuda_kernel_objects)
  set(cuda_targets "")
  foreach(architecture IN LISTS MEMPOOL_CUDA_ARCHITECTURES)
    list(APPEND cuda_targets -gencode arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  list(GET MEMPOOL_CUDA_ARCHITECTURES -1 architecture)
  list(APPEND cuda_targets -gencode arch=compute_${architecture},code=compute_${architecture})
  foreach(source IN LISTS cuda_kernel_sources)
    get_filename_component(kernel ${source} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${kernel}.cu.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${MEMPOOL_NVCC} -std=c++20 -O3 --expt-relaxed-constexpr -ccbin ${CMAKE_CXX_COMPILER}
        ${cuda_targets} -Xcompiler=-fPIC,-fvisibility=hidden
        -I${PROJECT_SOURCE_DIR}/csrc -MD -MF ${object}.d -c ${source} -o ${object}
      DEPENDS ${source} DEPFILE ${object}.d COMMENT "nvcc ${kernel}.cu" VERBATIM)
    list(APPEND cuda_kernel_objects ${object})
  endforeach()
  set_property(GLOBAL PROPERTY mempool_cuda_kernel_objects ${cuda_kernel_objects})
endif()

if(MEMPOOL_CUDA_EMULATOR)
  # Tests have the emulated library in the package, and that of nvcc beside it.
  if(NOT nvcc_problem)
    mempool_cuda_ops(_ops_nvcc ${cuda_kernel_objects})
    set_target_properties(_ops_nvcc-${torch_minor} PROPERTIES EXCLUDE_FROM_ALL ON)
    if(NOT TARGET _ops_nvcc)
      add_custom_target(_ops_nvcc)
    endif()
    add_dependencies(_ops_nvcc _ops_nvcc-${torch_minor})
  endif()
  set_source_files_properties(${cuda_kernel_sources} PROPERTIES LANGUAGE CXX
    COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas;-ffp-contract=off"
    INCLUDE_DIRECTORIES ${PROJECT_SOURCE_DIR}/tests/cuda_emulator/include)
  mempool_cuda_ops(_ops_cuda ${cuda_kernel_sources} ${PROJECT_SOURCE_DIR}/tests/cuda_emulator/emulator.cpp)
  target_include_directories(_ops_cuda-${torch_minor} BEFORE PRIVATE ${PROJECT_SOURCE_DIR}/tests/cuda_emulator)
elseif(NOT nvcc_problem)
  mempool_cuda_ops(_ops_cuda ${cuda_kernel_objects})
elseif(MEMPOOL_CUDA STREQUAL "on")
  message(FATAL_ERROR " MEMPOOL_CUDA=on, and ${nvcc_problem}.")
endif()
if(TARGET _ops_cuda-${torch_minor})
  mempool_place(_ops_cuda-${torch_minor} mempool/_shims/torch-${torch_minor} "/../..")
else()
  set(mempool_kernels_problem "${nvcc_problem}")
  message(STATUS "Packed layers will run on the CPU alone: ${mempool_kernels_problem}.")
endif()
