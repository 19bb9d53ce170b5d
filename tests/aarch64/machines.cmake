# The machines that qemu plays beside its own: each processor with the best set of kernels that it can run, and larger
# pages.
function(mempool_on_machine name program)
  add_test(NAME ${name} COMMAND ${program})
  set_tests_properties(${name} PROPERTIES TIMEOUT 1800 ENVIRONMENT "${ARGN}")
endfunction()

mempool_on_machine(test_kernels_neon test_kernels QEMU_CPU=cortex-a72 MEMPOOL_TEST_BEST_ISA=neon)
mempool_on_machine(test_kernels_neon_dot test_kernels QEMU_CPU=cortex-a76 MEMPOOL_TEST_BEST_ISA=neon_dot)
mempool_on_machine(test_kernels_neon_i8mm test_kernels QEMU_CPU=max MEMPOOL_TEST_BEST_ISA=neon_i8mm)
foreach(kib 16 64)
  math(EXPR bytes "${kib} * 1024")
  foreach(program test_core test_backend test_threads)
    mempool_on_machine(${program}_${kib}k ${program} QEMU_PAGESIZE=${bytes})
  endforeach()
endforeach()
