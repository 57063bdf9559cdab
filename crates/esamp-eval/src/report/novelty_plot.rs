//! The figure of what novelty correlates with.

use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, LineSeries, Polygon, RGBColor,
        SVGBackend, Text, WHITE,
    },
    style::{FontDesc, FontFamily, FontStyle, TextStyle},
};

use super::novelty::{Deciles, Measure, Summary};

const WIDTH: u32 = 820;
const HEIGHT: u32 = 640;
/// Heights of the title above the four panels, and of the note below them.
const TITLE: u32 = 34;
const NOTE: u32 = 24;
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);
/// Blue of Okabe and Ito's palette, which is safe for colour-blind readers.
const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xB2);

/// A figure could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("figure: {0}")]
pub struct FigureError(String);

/// A figure with four panels, as SVG text on a white background: surprisal, frequency rank and position of
/// tokens, and semantic distance of windows, by decile of relative novelty. Lines show the mean, bands the
/// range from the lower to the upper quartile.
///
/// A panel without data stays empty and says so.
///
/// # Errors
///
/// Errors of the drawing library.
pub fn novelty_figure(
    title: &str,
    tokens: &Deciles,
    windows: Option<&Deciles>,
) -> Result<String, FigureError> {
    let mut svg = String::new();
    draw(&mut svg, title, tokens, windows).map_err(FigureError)?;
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(
    svg: &mut String,
    title: &str,
    tokens: &Deciles,
    windows: Option<&Deciles>,
) -> Result<(), String> {
    let root = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE).map_err(text)?;
    root.draw(&Text::new(title.to_owned(), (14, 10), font(17.0, FontStyle::Bold))).map_err(text)?;
    let note =
        "line: mean of the decile; band: its middle half, from the lower quartile to the upper one";
    let note_place = (14, (HEIGHT - NOTE + 4) as i32);
    root.draw(&Text::new(note, note_place, font(14.0, FontStyle::Normal))).map_err(text)?;
    let panels = root.margin(TITLE, NOTE, 4, 12).split_evenly((2, 2));
    let shown = [
        (Some(tokens), Measure::Surprisal, "tokens"),
        (Some(tokens), Measure::FrequencyRank, "tokens"),
        (Some(tokens), Measure::Position, "tokens"),
        (windows, Measure::Distance, "windows of 16 tokens"),
    ];
    for (area, (deciles, measure, what)) in panels.iter().zip(shown) {
        panel(area, deciles, measure, what)?;
    }
    root.present().map_err(text)
}

fn panel(
    area: &Area<'_>,
    deciles: Option<&Deciles>,
    measure: Measure,
    what: &str,
) -> Result<(), String> {
    let found = deciles.and_then(|deciles| Some((deciles, deciles.summaries(measure)?)));
    let Some((deciles, summaries)) = found else {
        let (width, height) = area.dim_in_pixel();
        let nothing = format!("{measure}: no {what}");
        let place = (width as i32 / 3, height as i32 / 2);
        return area.draw(&Text::new(nothing, place, font(14.0, FontStyle::Normal))).map_err(text);
    };
    let (low, high) = range(&summaries);
    if !(low.is_finite() && high.is_finite()) {
        // The labels of such an axis would have no end.
        return Err(format!(
            "{measure}: expected finite numbers, got an axis from {low} to {high}"
        ));
    }
    let count = summaries.len();
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(62)
        .build_cartesian_2d(0.5..count as f64 + 0.5, low..high)
        .map_err(text)?;
    let n: usize = deciles.parts.iter().map(|part| part.n).sum();
    let ends = deciles.parts.first().zip(deciles.parts.last());
    let (least, greatest) = ends.map_or((0.0, 0.0), |(first, last)| (first.least, last.greatest));
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE.mix(0.0))
        .axis_style(INK)
        .x_labels(count + 1)
        .y_labels(6)
        .x_label_formatter(&|place| format!("{place:.0}"))
        .y_label_formatter(&|value| number(*value, high - low))
        .label_style(font(13.0, FontStyle::Normal))
        .axis_desc_style(font(14.0, FontStyle::Normal))
        .x_desc(format!(
            "decile of {} ({least:.2} to {greatest:.2}), {} {what}",
            ratio(deciles.by),
            grouped(n)
        ))
        .y_desc(format!("{measure} ({})", unit(measure)))
        .draw()
        .map_err(text)?;
    let at = |place: usize, value: f64| (place as f64 + 1.0, value);
    let upper = summaries.iter().enumerate().map(|(place, it)| at(place, it.upper));
    let lower = summaries.iter().enumerate().rev().map(|(place, it)| at(place, it.lower));
    let band: Vec<(f64, f64)> = upper.chain(lower).collect();
    chart.draw_series([Polygon::new(band, BLUE.mix(0.2))]).map_err(text)?;
    let means = || summaries.iter().enumerate().map(|(place, it)| at(place, it.mean));
    chart.draw_series(LineSeries::new(means(), BLUE.stroke_width(2))).map_err(text)?;
    chart.draw_series(means().map(|mean| Circle::new(mean, 3, BLUE.filled()))).map_err(text)?;
    Ok(())
}

/// The axis range: from 0 unless all values are in the upper half, with some margin.
fn range(summaries: &[Summary]) -> (f64, f64) {
    let ends = summaries.iter().flat_map(|it| [it.lower, it.mean, it.upper]);
    let (least, greatest) = ends
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), it| {
            (least.min(it), greatest.max(it))
        });
    let low = if least >= 0.0 && 2.0 * least < greatest { 0.0 } else { least };
    let air = if greatest > low {
        0.05 * (greatest - low)
    } else {
        0.5 // all values are equal: centre the line
    };
    // Wide enough for labels that differ from each other in floating point.
    let air = air.max(1e-6 * low.abs().max(greatest.abs()));
    (if low == 0.0 && greatest > 0.0 { 0.0 } else { low - air }, greatest + air)
}

/// The formula of relative novelty, which has no unit.
fn ratio(measure: Measure) -> &'static str {
    match measure {
        Measure::RelativeNovelty => "‖e‖/‖deep‖",
        other => other.name(),
    }
}

/// Units short enough for an axis.
fn unit(measure: Measure) -> &'static str {
    match measure {
        Measure::FrequencyRank => "0: most frequent",
        Measure::Position => "tokens",
        other => other.unit(),
    }
}

/// An axis label with only as many digits as the ticks need.
fn number(value: f64, width: f64) -> String {
    let digits = if width >= 5.0 {
        0
    } else if width >= 0.5 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    match text.strip_prefix('-') {
        Some(size) => format!("−{size}"),
        None => text,
    }
}

/// Formats 12345 as 12,345.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn font(size: f64, style: FontStyle) -> TextStyle<'static> {
    TextStyle::from(FontDesc::new(FontFamily::SansSerif, size, style)).color(&INK)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(lower: f64, mean: f64, upper: f64) -> Summary {
        Summary { mean, lower, median: mean, upper }
    }

    #[test]
    fn axes_hold_everything_and_begin_at_zero_where_that_is_near() {
        assert_eq!(range(&[summary(1.0, 2.0, 3.0), summary(2.0, 9.0, 4.0)]), (0.0, 9.0 + 0.45));
        let (low, high) = range(&[summary(0.6, 0.7, 0.8), summary(0.5, 0.6, 0.7)]);
        assert!((low - 0.485).abs() < 1e-12 && (high - 0.815).abs() < 1e-12, "{low} {high}");
        // Exactly at the border of the upper half.
        assert!(range(&[summary(0.5, 0.7, 1.0)]).0 > 0.4);
        assert_eq!(range(&[summary(0.49, 0.7, 1.0)]).0, 0.0);
        assert_eq!(range(&[summary(-1.0, 0.0, 1.0)]), (-1.1, 1.1));
        assert_eq!(range(&[summary(2.0, 2.0, 2.0)]), (1.5, 2.5), "a line in the middle");
        assert_eq!(range(&[summary(0.0, 0.0, 0.0)]), (-0.5, 0.5));
    }

    #[test]
    fn labels_have_the_digits_that_ticks_need() {
        let labels = [(1000.0, 1200.0), (2.5, 3.0), (0.25, 0.3), (-0.5, 3.0)];
        assert_eq!(
            labels.map(|(value, width)| number(value, width)),
            ["1000", "2.5", "0.25", "−0.5"]
        );
        assert_eq!(
            [0, 999, 1000, 46_080, 1_234_567].map(grouped),
            ["0", "999", "1,000", "46,080", "1,234,567"]
        );
    }
}
