// What the parts of the pretended device share.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <string>

namespace pretended {

constexpr int kDevices = 2;

// The device that is current on this thread.
int current_device();

// A tensor without values on the pretended device.
at::Tensor empty_like_strided(at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype, at::Device device);
at::Tensor empty(at::IntArrayRef size, at::ScalarType dtype, at::Device device, at::MemoryFormat format);

// Notes one operator of torch that would have launched a kernel on these tensors, where somebody records.
void note(const char* name, std::initializer_list<const at::Tensor*> tensors);
// The same for one launch that works on lists of tensors.
void note_lists(const char* name, std::initializer_list<at::TensorList> lists);

}  // namespace pretended
