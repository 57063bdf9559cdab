//! Line charts over token positions, as inline SVG without scripts, libraries or fonts.

use super::markup::{escaped, number};

/// Number of arms with distinct colours; further arms reuse them.
pub(super) const COLOURS: usize = 6;

/// One chart.
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) lines: Vec<Line>,
}

/// The line of one arm.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) arm: usize,
    pub(super) points: Vec<Point>,
}

/// Mean, least and greatest value over the completions of an arm at one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// Position in the completion, from 0.
    pub(super) place: usize,
    pub(super) mean: f64,
    pub(super) least: f64,
    pub(super) greatest: f64,
}

impl Point {
    /// Summarises `numbers`; `None` if there are none.
    pub(super) fn of(place: usize, numbers: &[f64]) -> Option<Self> {
        if numbers.is_empty() {
            return None;
        }
        let fold = |pick: fn(f64, f64) -> f64, from: f64| numbers.iter().copied().fold(from, pick);
        Some(Self {
            place,
            mean: numbers.iter().sum::<f64>() / numbers.len() as f64,
            least: fold(f64::min, f64::INFINITY),
            greatest: fold(f64::max, f64::NEG_INFINITY),
        })
    }
}

// The layout, in SVG user units.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 30.0;

/// Maps values to SVG coordinates.
struct Axes {
    last_place: f64,
    low: f64,
    high: f64,
}

impl Axes {
    fn x(&self, place: f64) -> f64 {
        LEFT + place / self.last_place.max(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

impl Chart {
    /// The chart as a figure with a caption.
    pub(super) fn svg(&self) -> String {
        let (title, unit) = (escaped(self.title), escaped(self.unit));
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let body = match points().map(|point| point.place).max() {
            None => "<p class=\"nothing\">No token of this run has a value.</p>\n".to_owned(),
            Some(last_place) => {
                let least = points().map(|point| point.least).fold(0.0, f64::min);
                let greatest = points().map(|point| point.greatest).fold(0.0, f64::max);
                let ticks = ticks(least, greatest);
                let low = ticks.first().copied().unwrap_or(0.0);
                let high = ticks.last().copied().unwrap_or(1.0);
                let axes = Axes { last_place: last_place as f64, low, high };
                let lines: String = self.lines.iter().map(|line| line.svg(&axes)).collect();
                format!(
                    "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}, {unit}\">\n\
                     {}{lines}</svg>\n",
                    grid(&axes, &ticks)
                )
            }
        };
        format!(
            "<figure>\n<figcaption>{title} <small>{unit}</small></figcaption>\n{body}</figure>\n"
        )
    }
}

impl Line {
    fn svg(&self, axes: &Axes) -> String {
        if self.points.is_empty() {
            return String::new();
        }
        let at =
            |place: usize, value: f64| format!("{:.1},{:.1}", axes.x(place as f64), axes.y(value));
        let mean: Vec<String> = self.points.iter().map(|p| at(p.place, p.mean)).collect();
        let above = self.points.iter().map(|p| at(p.place, p.greatest));
        let below = self.points.iter().rev().map(|p| at(p.place, p.least));
        let band: Vec<String> = above.chain(below).collect();
        // The hover target is larger than the visible dot.
        let points = self.points.iter().map(|p| {
            let (x, y) = (axes.x(p.place as f64), axes.y(p.mean));
            format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{}, token {}: {} ({} to {})</title></circle>\n",
                escaped(&self.name),
                p.place + 1,
                number(p.mean),
                number(p.least),
                number(p.greatest),
            )
        });
        format!(
            "<g class=\"arm-{}\">\n<polygon points=\"{}\"/>\n<polyline points=\"{}\"/>\n{}</g>\n",
            self.arm % COLOURS,
            band.join(" "),
            mean.join(" "),
            points.collect::<String>(),
        )
    }
}

fn grid(axes: &Axes, ticks: &[f64]) -> String {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut out = String::new();
    for &tick in ticks {
        let y = axes.y(tick);
        out.push_str(&format!(
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            LEFT - 6.0,
            y + 4.0,
            label(tick)
        ));
    }
    // Tokens are numbered from 1.
    let places = self::ticks(1.0, axes.last_place + 1.0);
    let inside = places.iter().filter(|&&place| place >= 1.0 && place <= axes.last_place + 1.0);
    for &place in inside.filter(|place| place.fract() == 0.0) {
        out.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            axes.x(place - 1.0),
            bottom + 16.0,
            label(place)
        ));
    }
    out.push_str(&format!(
        "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\">token</text>\n",
        HEIGHT - 2.0
    ));
    out
}

/// Formats a tick without trailing zeros.
fn label(tick: f64) -> String {
    let text = format!("{tick:.6}");
    text.trim_end_matches('0').trim_end_matches('.').replace('-', "−")
}

/// Four to eight round, evenly spaced ticks that cover `least` to `greatest`.
fn ticks(least: f64, greatest: f64) -> Vec<f64> {
    let width = greatest - least;
    if width.is_nan() || width <= 0.0 || width.is_infinite() {
        return vec![least, least + 1.0];
    }
    let rough = width / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = steps.map(|s| s * power).into_iter().find(|&step| step >= rough * 0.999);
    let step = step.unwrap_or(rough);
    let first = (least / step).floor() as i64;
    let last = (greatest / step).ceil() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_everything() {
        assert_eq!(ticks(0.0, 1.0).len(), 6);
        assert_eq!(ticks(0.0, 100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(-1.0, 0.5).first(), Some(&-1.0));
        assert_eq!(ticks(3.0, 3.0), [3.0, 4.0]);
        for greatest in [1e-6, 0.013, 0.99, 1.01, 7.3, 49.0, 12_345.0] {
            let ticks = ticks(0.0, greatest);
            assert!((4..=8).contains(&ticks.len()), "{greatest}: {ticks:?}");
            assert!(ticks[0] == 0.0 && ticks[ticks.len() - 1] >= greatest * 0.999, "{ticks:?}");
        }
        assert_eq!(["0", "0.25", "−2.5", "100"], [0.0, 0.25, -2.5, 100.0].map(label));
    }
}
