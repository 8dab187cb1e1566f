#include "plot.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace skald_cli {

namespace {

constexpr double width = 760;
constexpr double height = 420;
constexpr double left = 64;
constexpr double right = 230;  // the legend stands there
constexpr double top = 36;
constexpr double bottom = 52;

/// Colours that people with colour blindness tell apart (Okabe and Ito 2008); beyond them lines are dashed.
constexpr const char* colors[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                  "#e69f00", "#56b4e9", "#666666", "#8b5a2b"};

struct Axis {
  double low = 0;
  double high = 1;
  double step = 1;
};

/// Round numbers around [low, high], about five of them.
Axis axis_of(double low, double high) {
  if (!(high > low)) high = low + std::max(1e-9, std::abs(low) * 0.1);
  const double raw = (high - low) / 5;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.5, 2.0, 1.0})
    if (factor * power >= raw) step = factor * power;
  return {std::floor(low / step) * step, std::ceil(high / step) * step, step};
}

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '<') result += "&lt;";
    else if (c == '>') result += "&gt;";
    else if (c == '&') result += "&amp;";
    else if (c == '"') result += "&quot;";
    else result += c;
  }
  return result;
}

}  // namespace

std::string to_svg(const Plot& plot) {
  double x_high = 0;
  double y_low = INFINITY;
  double y_high = -INFINITY;
  for (const auto& series : plot.series)
    for (const auto& [x, y] : series.points) {
      x_high = std::max(x_high, x);
      y_low = std::min(y_low, y);
      y_high = std::max(y_high, y);
    }
  if (!(y_low <= y_high)) y_low = y_high = 0;
  const auto x_axis = axis_of(0, x_high);
  const auto y_axis = axis_of(plot.from_zero ? std::min(0.0, y_low) : y_low, y_high);
  const auto px = [&](double x) {
    return left + (x - x_axis.low) / (x_axis.high - x_axis.low) * (width - left - right);
  };
  const auto py = [&](double y) {
    return height - bottom - (y - y_axis.low) / (y_axis.high - y_axis.low) * (height - top - bottom);
  };
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
      "<text x=\"{}\" y=\"20\" font-size=\"14\">{}</text>\n",
      width, height, left, escaped(plot.title));
  const auto text = [&](double x, double y, const char* anchor, const std::string& words) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor, escaped(words));
  };
  const auto line = [&](double x1, double y1, double x2, double y2, const char* color) {
    out += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n", x1, y1, x2,
                       y2, color);
  };
  for (int i = 0; i <= static_cast<int>(std::lround((y_axis.high - y_axis.low) / y_axis.step)); ++i) {
    const double y = y_axis.low + i * y_axis.step;
    line(left, py(y), width - right, py(y), "#dddddd");
    text(left - 6, py(y) + 4, "end", fmt::format("{:.6g}", y));
  }
  for (int i = 0; i <= static_cast<int>(std::lround((x_axis.high - x_axis.low) / x_axis.step)); ++i) {
    const double x = x_axis.low + i * x_axis.step;
    line(px(x), height - bottom, px(x), height - bottom + 4, "#666666");
    text(px(x), height - bottom + 18, "middle", fmt::format("{:.6g}", x));
  }
  line(left, height - bottom, width - right, height - bottom, "#666666");
  text((left + width - right) / 2, height - 12, "middle", plot.x_label);
  out += fmt::format("<text transform=\"translate(16 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
                     (top + height - bottom) / 2, escaped(plot.y_label));
  for (std::size_t i = 0; i < plot.series.size(); ++i) {
    const auto& series = plot.series[i];
    const char* color = colors[i % std::size(colors)];
    const auto style = fmt::format(
        "fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}", color,
        i < std::size(colors) ? "" : fmt::format(" stroke-dasharray=\"{} 3\"", 6 / (i / std::size(colors))));
    std::string points;
    for (const auto& [x, y] : series.points) points += fmt::format("{:.1f},{:.1f} ", px(x), py(y));
    out += fmt::format("<polyline points=\"{}\" {}/>\n", points, style);
    for (const auto& [x, y] : series.points)
      out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", px(x), py(y), color);
    const double at = top + 18 * static_cast<double>(i) + 6;
    out += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", width - right + 14, at,
                       width - right + 38, at, style);
    text(width - right + 44, at + 4, "start", series.name);
  }
  return out + "</svg>\n";
}

}  // namespace skald_cli
