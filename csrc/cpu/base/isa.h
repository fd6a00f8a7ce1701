// Which of the compiled instruction sets the CPU launchers use, chosen once per process.
#pragma once

namespace resnet_fused::cpu {

// In order: each has what the ones before it have. amx: AVX-512 with bfloat16, and the matrix unit.
enum class Isa : int { portable, avx2, avx512, avx512_bf16, amx };

// The best one this CPU has, or RESNET_FUSED_CPU_ISA=portable|avx2|avx512|avx512_bf16|amx if that is lower.
Isa isa();
const char* isa_name(Isa isa);

}  // namespace resnet_fused::cpu
