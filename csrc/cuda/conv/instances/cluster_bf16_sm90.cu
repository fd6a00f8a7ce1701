#include "cuda/conv/cluster_launch.cuh"

namespace resnet_fused::cuda {
template void launch_conv_cluster<MathBF16>(const ConvPlan&, const ConvArgs&, bool, void*);
}
