#pragma once

#include <string>
#include <utility>
#include <vector>

namespace skald_cli {

/// One line of a plot.
struct Series {
  std::string name{};
  std::vector<std::pair<double, double>> points{};  ///< ascending x
};

/// A line chart.
struct Plot {
  std::string title{};
  std::string x_label{};
  std::string y_label{};
  std::vector<Series> series{};
  bool from_zero = true;  ///< the y axis begins at 0
};

/// The chart as a document of its own in SVG, readable on light and dark backgrounds.
[[nodiscard]] std::string to_svg(const Plot& plot);

}  // namespace skald_cli
