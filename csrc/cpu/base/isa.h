// The instruction set that the CPU launchers use. It is chosen once per process.
#pragma once

namespace resnet_fused::cpu {

// In ascending order: each set includes the sets before it. amx: AVX-512 with bfloat16, and the matrix unit.
enum class Isa : int { portable, avx2, avx512, avx512_bf16, amx };

// The best set of this CPU, or RESNET_FUSED_CPU_ISA=portable|avx2|avx512|avx512_bf16|amx if that set is lower.
Isa isa();
const char* isa_name(Isa isa);

}  // namespace resnet_fused::cpu
