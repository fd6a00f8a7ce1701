#include "cuda/conv/launch.cuh"

namespace resnet_fused::cuda {
template void launch_conv_pair<MathBF16>(const ConvPlan&, const ConvArgs&, const ConvArgs&, void*);
}
