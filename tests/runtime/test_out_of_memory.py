from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from medseg.runtime.out_of_memory import is_out_of_memory, out_of_memory_reason


def caught(action: object) -> BaseException:
    with pytest.raises(BaseException) as found:  # noqa: PT011
        action()  # type: ignore[operator]
    return found.value


def test_the_allocators_of_numpy_and_torch_are_recognised() -> None:
    for action in (lambda: np.zeros(2**60, np.uint8), lambda: torch.zeros(2**60, dtype=torch.uint8)):
        error = caught(action)
        assert is_out_of_memory(error)
        reason = out_of_memory_reason(error)
        assert "allocate" in reason.lower()
        assert "\n" not in reason


def test_devices_and_the_system() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert out_of_memory_reason(torch.OutOfMemoryError("CUDA out of memory. Tried")) == "CUDA out of memory"
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Exception thrown in SimpleITK ImageFileReader_Execute: std::bad_alloc", "std::bad_alloc"),
        (
            "Exception thrown in SimpleITK ImageFileReader_Execute: /tmp/itkImportImageContainer.hxx:179:\n"
            "Failed to allocate memory for image.",
            "Failed to allocate memory for image",
        ),
    ],
)
def test_the_allocator_of_itk_is_recognised(text: str, reason: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert out_of_memory_reason(RuntimeError(text)) == reason


def test_the_reason_keeps_a_size_with_a_decimal_point() -> None:
    error = MemoryError("Unable to allocate 9. TiB for an array. Close other programs.")
    assert out_of_memory_reason(error) == "Unable to allocate 9. TiB for an array"


def test_an_error_raised_from_a_lack_of_memory_counts() -> None:
    outer = ValueError("case_1")
    outer.__cause__ = MemoryError()
    assert is_out_of_memory(outer)


@pytest.mark.parametrize(
    "error", [RuntimeError("memory format"), OSError(errno.ENOENT, "x"), KeyError("memory")]
)
def test_other_errors_do_not_count(error: Exception) -> None:
    assert not is_out_of_memory(error)
