#include "cuda/conv/launch.cuh"

namespace resnet_fused::cuda {
template void launch_conv<MathTF32>(const ConvPlan&, const ConvArgs&, void*);
}
