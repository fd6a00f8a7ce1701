// The interpolation points of F(4x4, 3x3): 0, +-a, +-b, infinity. 1/sqrt(2) and sqrt(2) halve the rounding error of the
// usual 1 and 2 at the same number of operations (errors in docs/winograd.md). F(2x2, 3x3): 0, +-1, infinity.
#pragma once

namespace resnet_fused::cpu {

constexpr double kPointA = 0.70710678118654752440;
constexpr double kPointB = 1.41421356237309504880;

// The product of the differences to the other finite points, by which G divides; it is a^2 b^2 = 1 for 0.
constexpr double kNormA = 2 * kPointA * kPointA * (kPointA * kPointA - kPointB * kPointB);
constexpr double kNormB = 2 * kPointB * kPointB * (kPointB * kPointB - kPointA * kPointA);

}  // namespace resnet_fused::cpu
