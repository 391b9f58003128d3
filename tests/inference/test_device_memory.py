"""Running out of memory is recognised in the words of each library, and nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch

from llava_video_cli.inference.device_memory import is_out_of_memory

CUDA_OOM = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.69 GiB"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA_OOM),
        MemoryError(),
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the manual"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("Error out of memory at line 380 in file /src/csrc/ops.cu"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.10 GB)"),
        RuntimeError("Invalid buffer size: 16.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1000 bytes."),
        RuntimeError("could not create a primitive"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        ValueError("Unable to allocate 5.00 GiB for an array with shape (1,)"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_memory_that_ran_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("probability tensor contains either `inf`, `nan` or element < 0"),
        OSError(2, "No such file or directory"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_other_failures(error: BaseException) -> None:
    assert not is_out_of_memory(error)
