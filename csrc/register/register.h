// Names under which the launchers are registered. Every file that registers ops opens its own FRAGMENT of the library
// RESNET_FUSED_NAMESPACE, so that adding an op touches no other file.
//
// The library of the package: namespace resnet_fused_native, `cpu::` for CPU tensors and, with RESNET_FUSED_WITH_CUDA,
// `cuda::` for CUDA tensors. The library of the tests (RESNET_FUSED_EMULATION): namespace resnet_fused_emu, where the
// `cuda::` launchers, compiled by the host compiler for the emulator, take CPU tensors.
#pragma once

#include "register/check.h"

#ifdef RESNET_FUSED_EMULATION
#define RESNET_FUSED_NAMESPACE resnet_fused_emu
#else
#define RESNET_FUSED_NAMESPACE resnet_fused_native
#endif
