#include "cuda/conv/launch.cuh"

namespace resnet_fused::cuda {
template void launch_conv_stats<MathTF32>(const ConvPlan&, const ConvArgs&, const MomentsBuffer&, void*);
}
