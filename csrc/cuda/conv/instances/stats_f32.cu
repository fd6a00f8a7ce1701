#include "cuda/conv/launch.cuh"

namespace resnet_fused::cuda {
template void launch_conv_stats<MathF32>(const ConvPlan&, const ConvArgs&, const MomentsBuffer&, void*);
}
