// The interpolation points of F(4x4, 3x3): 0, +-a, +-b, infinity. a = 1/sqrt(2) and b = sqrt(2) have half the rounding
// error of the usual 1 and 2 and need the same number of operations (errors in docs/design/winograd.md). The points of
// F(2x2, 3x3): 0, +-1, infinity.
#pragma once

namespace resnet_fused::cpu {

constexpr double kPointA = 0.70710678118654752440;
constexpr double kPointB = 1.41421356237309504880;

// The product of the differences to the other finite points, by which G divides. For the point 0 it is a^2 b^2 = 1.
constexpr double kNormA = 2 * kPointA * kPointA * (kPointA * kPointA - kPointB * kPointB);
constexpr double kNormB = 2 * kPointB * kPointB * (kPointB * kPointB - kPointA * kPointA);

// Where a size is no multiple of 4, tiles of 3 outputs fill the rest: 14 = 4 + 4 + 3 + 3. Tiles of 3 leave out the
// point a, so they share the weights of tiles of 4. They take 5 products an axis instead of 6: 16 % fewer at 14x14 and
// 7x7. The point left out is a and not -a: images after a ReLU are positive, and the RMS error is 6.9e-7 instead of
// 8.1e-7 (256 channels, computed). These constants are the places of the points of M outputs among all points of an
// axis, and their number.
template <int M>
inline constexpr int kPlaces[6] = {0, 1, 2, 3, 4, 5};
template <>
inline constexpr int kPlaces<3>[6] = {0, 2, 3, 4, 5};
constexpr int kPointLeftOut = 1;
template <int M>
inline constexpr int kPointsOf = M == 2 ? 4 : 6;

}  // namespace resnet_fused::cpu
