//! Figures: coverage by completions, repetitions and errors by wave, coverage against validity.

use esamp_programs::failure::Failure;
use plotters::prelude::*;

use super::{
    super::plots::{FONT, WIDTH, broken, colour, drawn, height, range, write_labels},
    differences::{Count, frontier, mean, sizes},
    gather::{Half, Subject},
};

/// The arms with curves, if there are too many for one figure: besides them the best of the frontier.
const CURVES: [&str; 7] = [
    "plain-1",
    "arithmetic",
    "esamp-0.5",
    "esamp-0.5-open",
    "orthogonal-1-open",
    "elliptical-orthogonal-1-open",
    "frozen-0.5-open",
];

/// A line of a figure.
struct Curve<'h> {
    name: &'h str,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

/// The figures of a model, each with its file name.
///
/// # Errors
///
/// Values that are not finite.
pub fn of(subject: &Subject, half: &Half) -> Result<Vec<(String, String)>, Failure> {
    let name = &subject.name;
    let file = |what: &str| format!("{}-{what}.svg", name.replace(", ", "-"));
    let curves = |points: &dyn Fn(usize) -> Option<Vec<(f64, f64)>>| -> Vec<Curve<'_>> {
        let arms = with_curves(subject, half).into_iter().enumerate();
        let curve = |(at, arm): (usize, usize)| {
            Some(Curve { name: &half.arms[arm].name, colour: colour(at), points: points(arm)? })
        };
        arms.filter_map(curve).collect()
    };
    // The first completions of a wave say little: those of arithmetic sampling are in the order of their codes.
    let first = subject.wave.min(subject.samples).next_power_of_two() / 2;
    let powers = std::iter::successors(Some(first.max(1)), |n| Some(2 * n));
    let powers: Vec<usize> = powers.take_while(|&n| n <= subject.samples).collect();
    let covered = curves(&|arm| {
        let at = |&n: &usize| ((n as f64).log2(), Count::Distinct.mean(half, arm, n));
        Some(powers.iter().map(at).collect())
    });
    let mut figures = vec![
        (file("coverage"), {
            let title = format!("{name}: different right answers among n completions, as a share");
            lines(&title, ["n, completions of a problem", "coverage"], true, &covered)?
        }),
        (file("validity"), against_validity(subject, half)?),
    ];
    let waves = subject.samples.div_ceil(subject.wave);
    if waves > 1 {
        let by_wave = |figure: &dyn Fn(usize, usize) -> Option<f64>, arm: usize| {
            (0..waves).map(|wave| Some((wave as f64 + 1.0, figure(arm, wave)?))).collect()
        };
        let repeated = |arm: usize, wave: usize| {
            let of = half.if_all(arm, |tally| *tally.repetitions(subject.wave).get(wave)?)?;
            Some(mean(&of))
        };
        let error = |arm: usize, wave: usize| {
            let of = half.if_all(arm, |tally| tally.waves.get(wave)?.mean_relative_novelty)?;
            Some(mean(&of))
        };
        for (what, title, height, of) in [
            (
                "repetitions",
                "right completions that repeat an earlier answer, as a share",
                "repetitions",
                &repeated as &dyn Fn(usize, usize) -> Option<f64>,
            ),
            ("error", "relative error of the distiller", "relative error", &error),
        ] {
            let all = curves(&|arm| by_wave(of, arm));
            if !all.is_empty() {
                let title = format!("{name}: {title}");
                let size = format!("wave of {} completions", subject.wave);
                figures.push((file(what), lines(&title, [&size, height], false, &all)?));
            }
        }
    }
    Ok(figures)
}

/// The arms that curves are drawn of.
fn with_curves(subject: &Subject, half: &Half) -> Vec<usize> {
    if half.arms.len() <= CURVES.len() + 1 {
        return (0..half.arms.len()).collect();
    }
    let n = sizes(subject.samples).pop().unwrap_or_default();
    let covered = |arm: &usize| Count::Distinct.mean(half, *arm, n);
    let best = frontier(half).into_iter().max_by(|a, b| covered(a).total_cmp(&covered(b)));
    let mut arms: Vec<usize> = CURVES.iter().filter_map(|name| half.arm(name)).collect();
    arms.extend(best.filter(|best| !arms.contains(best)));
    arms
}

/// Lines with labels at their ends. With `is_log` the horizontal values are binary logarithms.
fn lines(
    title: &str,
    [x, y]: [&str; 2],
    is_log: bool,
    curves: &[Curve<'_>],
) -> Result<String, Failure> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let (low, high) = range(points().map(|point| point.1))?;
    let [first, last] = [f64::min as fn(f64, f64) -> f64, f64::max]
        .map(|of| points().map(|point| point.0).reduce(of).unwrap_or_default());
    let label =
        |value: &f64| if is_log { format!("{:.0}", value.exp2()) } else { format!("{value:.0}") };
    drawn((WIDTH, height(curves.len())), |area| {
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 17))
            .margin(12)
            .margin_right(210)
            .x_label_area_size(38)
            .y_label_area_size(52)
            .build_cartesian_2d(first..last.max(first + 1.0), low..high)
            .map_err(broken)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_labels((last - first) as usize + 1)
            .x_label_formatter(&label)
            .y_label_formatter(&|value| format!("{value:.2}"))
            .x_desc(x)
            .y_desc(y)
            .label_style((FONT, 13))
            .draw()
            .map_err(broken)?;
        let mut labels = Vec::new();
        for Curve { name, colour, points } in curves {
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
            chart.draw_series(line).map_err(broken)?;
            let dots = points.iter().map(|&point| Circle::new(point, 3, colour.filled()));
            chart.draw_series(dots).map_err(broken)?;
            if let Some(&end) = points.last() {
                labels.push((chart.backend_coord(&end), *name, *colour));
            }
        }
        write_labels(&area, labels)
    })
}

/// Coverage of all completions against validity: one point per arm, those of the frontier in black.
fn against_validity(subject: &Subject, half: &Half) -> Result<String, Failure> {
    let n = subject.samples;
    let frontier = frontier(half);
    let place = |arm: usize| (Count::Valid.mean(half, arm, n), Count::Distinct.mean(half, arm, n));
    let points: Vec<(f64, f64)> = (0..half.arms.len()).map(place).collect();
    let (left, right) = range(points.iter().map(|point| point.0))?;
    let (low, high) = range(points.iter().map(|point| point.1))?;
    let title = format!("{}: coverage against validity, {n} completions", subject.name);
    // Places that cannot be told apart in the figure.
    let near = |(x, y): (f64, f64)| ((x * 200.0).round() as i64, (y * 200.0).round() as i64);
    drawn((WIDTH, height(points.len())), |area| {
        let mut chart = ChartBuilder::on(&area)
            .caption(title, (FONT, 17))
            .margin(12)
            .margin_right(190)
            .x_label_area_size(38)
            .y_label_area_size(52)
            .build_cartesian_2d(left..right, low..high)
            .map_err(broken)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("right completions, as a share (more is better)")
            .y_desc("coverage (more is better)")
            .x_label_formatter(&|value| format!("{value:.2}"))
            .y_label_formatter(&|value| format!("{value:.2}"))
            .label_style((FONT, 13))
            .draw()
            .map_err(broken)?;
        let mut labels = Vec::new();
        for (arm, &point) in points.iter().enumerate() {
            // Black is the frontier's; the other colours repeat.
            let colour = if frontier.contains(&arm) { BLACK } else { colour(1 + arm % 6) };
            chart.draw_series([Circle::new(point, 4, colour.filled())]).map_err(broken)?;
            // Arms that a filter leaves few answers are at one place: one label says how many.
            let same = |&other: &usize| near(points[other]) == near(point);
            let at_this: Vec<usize> = (0..points.len()).filter(same).collect();
            if at_this[0] == arm {
                let more = at_this.len() - 1;
                let name = &half.arms[arm].name;
                let label = if more > 0 { format!("{name} and {more} more") } else { name.clone() };
                labels.push((chart.backend_coord(&point), label, colour));
            }
        }
        let labels = labels.iter().map(|(at, label, colour)| (*at, label.as_str(), *colour));
        write_labels(&area, labels.collect())
    })
}
