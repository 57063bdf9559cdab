//! Figures as SVG.

use esamp_programs::failure::Failure;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::record::Role;

/// A pass@k curve.
#[derive(Debug)]
pub struct Curve {
    pub name: String,
    pub colour: RGBColor,
    pub role: Role,
    /// k and pass@k, by ascending k.
    pub points: Vec<(usize, f64)>,
}

/// The perplexity and diversity of an arm.
#[derive(Debug)]
pub struct Point {
    pub name: String,
    pub colour: RGBColor,
    pub role: Role,
    pub perplexity: f64,
    pub diversity: f64,
}

/// Okabe and Ito's colours, which are safe for colour-blind readers.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(204, 121, 167),
    RGBColor(120, 120, 120),
];
/// The colour of an arm, the same in every figure.
pub fn colour(arm: usize) -> RGBColor {
    COLOURS[arm % COLOURS.len()]
}

pub(super) const WIDTH: u32 = 760;
pub(super) const FONT: &str = "sans-serif";

/// pass@k against k with one curve per arm, labelled at the right.
pub fn pass_curves(title: &str, curves: &[Curve]) -> Result<String, Failure> {
    let ends = curves.iter().flat_map(|curve| &curve.points);
    let most = ends.clone().map(|&(k, _)| k).max().unwrap_or(1);
    let (low, high) = range(ends.map(|&(_, pass)| pass))?;
    drawn((WIDTH, height(curves.len())), |area| {
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 17))
            .margin(12)
            .margin_right(190)
            .x_label_area_size(38)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..(most as f64).log2().max(1.0), low..high)
            .map_err(broken)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_labels(most.ilog2() as usize + 1)
            .x_label_formatter(&|power| format!("{:.0}", power.exp2()))
            .y_label_formatter(&|pass| format!("{pass:.2}"))
            .x_desc("k, completions of a problem")
            .y_desc("pass@k")
            .label_style((FONT, 13))
            .draw()
            .map_err(broken)?;
        let mut labels = Vec::new();
        for curve in curves {
            let colour = curve.colour;
            let points: Vec<(f64, f64)> =
                curve.points.iter().map(|&(k, pass)| ((k as f64).log2(), pass)).collect();
            let width = if curve.role == Role::Frontier { 1 } else { 2 };
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(width)))
                .map_err(broken)?;
            chart
                .draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))
                .map_err(broken)?;
            if let Some(&last) = points.last() {
                labels.push((chart.backend_coord(&last), curve.name.as_str(), colour));
            }
        }
        write_labels(&area, labels)
    })
}

/// Diversity against perplexity: the frontier as a line, all other arms as points. The perplexity axis is
/// logarithmic, so the line is the one that gains are measured from.
pub fn pareto(title: &str, diversity: &str, points: &[Point]) -> Result<String, Failure> {
    let (left, right) = range(points.iter().map(|point| point.perplexity.ln()))?;
    let (low, high) = range(points.iter().map(|point| point.diversity))?;
    drawn((WIDTH, height(points.len())), |area| {
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 17))
            .margin(12)
            .margin_right(120)
            .x_label_area_size(38)
            .y_label_area_size(52)
            .build_cartesian_2d(left..right, low..high)
            .map_err(broken)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("perplexity under the model (less is more coherent)")
            .y_desc(format!("{diversity} (more is more diverse)"))
            .x_label_formatter(&|value| format!("{:.1}", value.exp()))
            .y_label_formatter(&|value| format!("{value:.1}"))
            .label_style((FONT, 13))
            .draw()
            .map_err(broken)?;
        let mut frontier: Vec<(f64, f64)> = points
            .iter()
            .filter(|point| point.role == Role::Frontier)
            .map(|point| (point.perplexity.ln(), point.diversity))
            .collect();
        frontier.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart.draw_series(LineSeries::new(frontier, BLACK.stroke_width(1))).map_err(broken)?;
        let mut labels = Vec::new();
        for point in points {
            let colour = point.colour;
            let place = (point.perplexity.ln(), point.diversity);
            chart.draw_series([Circle::new(place, 5, colour.filled())]).map_err(broken)?;
            labels.push((chart.backend_coord(&place), point.name.as_str(), colour));
        }
        write_labels(&area, labels)
    })
}

/// Writes labels to the right of points, moved down where they would overlap.
pub(super) fn write_labels(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    mut labels: Vec<((i32, i32), &str, RGBColor)>,
) -> Result<(), Failure> {
    const HEIGHT: i32 = 14;
    /// Assumed width of a letter, in pixels.
    const LETTER: i32 = 7;
    labels.sort_by_key(|&((x, y), ..)| (y, x));
    let mut taken: Vec<(i32, i32, i32)> = Vec::new();
    for ((x, y), name, colour) in labels {
        let (left, right) = (x + 9, x + 9 + LETTER * name.chars().count() as i32);
        let mut top = y;
        // Move down until there is room. Each step passes one label, so the loop ends.
        while let Some(&(_, _, other)) = taken
            .iter()
            .find(|&&(l, r, other)| left < r && l < right && (top - other).abs() < HEIGHT)
        {
            top = other + HEIGHT;
        }
        taken.push((left, right, top));
        let style = (FONT, 13).into_font().color(&colour).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(name.to_owned(), (left, top), style)).map_err(broken)?;
    }
    Ok(())
}

/// The range of values with some margin at both ends.
///
/// # Errors
///
/// Values that are not finite: the labels of such an axis would have no end.
pub(super) fn range(values: impl Iterator<Item = f64>) -> Result<(f64, f64), Failure> {
    let values: Vec<f64> = values.collect();
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(Failure::new(
            format!("figure: expected finite numbers, got {value}"),
            "report this with the records",
        ));
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Wide enough for labels that differ from each other in floating point.
    let room = ((high - low) * 0.08).max(1e-3).max(1e-6 * low.abs().max(high.abs()));
    Ok(if low <= high { (low - room, high + room) } else { (0.0, 1.0) })
}

/// The height of a figure with room for this many labels.
pub(super) fn height(names: usize) -> u32 {
    460 + 16 * names.saturating_sub(12) as u32
}

/// An SVG on a white background, so that it is also readable on dark pages.
pub(super) fn drawn(
    size: (u32, u32),
    draw: impl FnOnce(DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Failure>,
) -> Result<String, Failure> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
    area.fill(&WHITE).map_err(broken)?;
    draw(area.clone())?;
    area.present().map_err(broken)?;
    drop(area);
    Ok(text)
}

/// A drawing error as a failure.
pub(super) fn broken(error: impl std::error::Error) -> Failure {
    Failure::runtime(error, "report this with the records")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_room_and_an_end() {
        let of = |values: &[f64]| range(values.iter().copied());
        let (low, high) = of(&[1.0, 2.0, 1.5]).unwrap();
        assert!((low - 0.92).abs() < 1e-12 && (high - 2.08).abs() < 1e-12, "{low} {high}");
        assert_eq!(of(&[]).unwrap(), (0.0, 1.0));
        let (low, high) = of(&[1e15, 1e15]).unwrap();
        assert!(high - low > 1e8, "{low} {high}");
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let error = of(&[1.0, value]).unwrap_err().to_string();
            assert!(error.contains("expected finite numbers, got "), "{error}");
        }
    }
}
