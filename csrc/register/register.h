// Names under which the launchers are registered. Every file that registers ops opens a FRAGMENT of the library
// RESNET_FUSED_NAMESPACE of its own, so that a new op changes no other file.
//
// The package's library has the namespace resnet_fused_native: `cpu::` for CPU tensors and, with
// RESNET_FUSED_WITH_CUDA, `cuda::` for CUDA tensors. The tests' library (RESNET_FUSED_EMULATION) has the namespace
// resnet_fused_emu: there the `cuda::` launchers, which the host compiler compiles for the emulator, take CPU tensors.
// The tests' pretended device (tests/emulator/device) names both itself.
#pragma once

#include "register/check.h"

#ifndef RESNET_FUSED_NAMESPACE
#ifdef RESNET_FUSED_EMULATION
#define RESNET_FUSED_NAMESPACE resnet_fused_emu
#define RESNET_FUSED_CUDA_KEY CPU
#else
#define RESNET_FUSED_NAMESPACE resnet_fused_native
#define RESNET_FUSED_CUDA_KEY CUDA
#endif
#endif
