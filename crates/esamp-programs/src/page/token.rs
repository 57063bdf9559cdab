//! Renders one token: its text, tints and tooltip.

use esamp::telemetry::{RowTrace, Steering};

use super::{
    ShownToken, TINTS,
    markup::{escaped, number, percent},
    scale::Scale,
};

/// The element of a token. Only the first token of a completion is in the tab order; arrow keys move on
/// from there.
pub(super) fn element(
    token: &ShownToken,
    first: bool,
    scales: &[Option<Scale>; TINTS.len()],
) -> String {
    let mut tints = Vec::new();
    for (tint, scale) in TINTS.iter().zip(scales) {
        if let (Some(number), Some(scale)) = ((tint.number)(&token.trace), scale) {
            tints.push(format!("{}:{:.2}", tint.variable, scale.share(number)));
        }
    }
    let changed = if token.unsteered.is_some() { " changed" } else { "" };
    let unseen = match token.text.as_str() {
        "" => " none",
        text if text.starts_with('\n') => " line",
        _ => "",
    };
    // Leading spaces are not tinted: at the end of a line they would stick out.
    let word = token.text.trim_start_matches(' ');
    let (spaces, word) = match word {
        "" => ("", token.text.as_str()),
        word => (&token.text[..token.text.len() - word.len()], word),
    };
    format!(
        "<span class=\"t{changed}{unseen}\" tabindex=\"{}\" style=\"{}\" data-tip=\"{}\">{spaces}<b>{}</b></span>",
        if first { "0" } else { "-1" },
        tints.join(";"),
        escaped(&tip(token)),
        escaped(word),
    )
}

/// The tooltip: one line per entry, name and value separated by a tab.
fn tip(token: &ShownToken) -> String {
    let trace = &token.trace;
    let before = -trace.surprisal;
    let after = f64::from(trace.log_prob);
    let of_candidates = |rank: usize| (rank + 1).to_string();
    let mut lines = vec![
        ("token", format!("{:?}, token {} of the completion", token.text, trace.position + 1)),
        ("steered", steered(trace.steering).to_owned()),
        ("probability", change(percent(before), percent(after))),
        ("log-probability", change(number(before), number(after))),
        (
            "rank",
            format!(
                "{} of {}",
                change(of_candidates(trace.reference_rank), of_candidates(trace.rank)),
                trace.candidates
            ),
        ),
        ("entropy", change(number(trace.reference_entropy), number(trace.entropy)) + " nats"),
        ("KL(new ‖ reference)", number(trace.kl) + " nats"),
        ("removed by filters", percent(trace.mass_outside.ln())),
    ];
    if trace.unsteered_token.is_some() {
        let other = token.unsteered.as_ref();
        let other = other.map_or("the same token".to_owned(), |text| format!("{text:?}"));
        lines.push(("without steering", other));
    }
    lines.extend(learned(trace));
    let lines: Vec<String> = lines.iter().map(|(name, value)| format!("{name}\t{value}")).collect();
    lines.join("\n")
}

/// Entries about the distiller and steering.
fn learned(trace: &RowTrace) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(novelty) = trace.novelty {
        let relative = trace.relative_novelty.map(|r| format!("{} of the deep state, ", number(r)));
        lines.push((
            "novelty",
            format!("{}‖e‖ {}", relative.unwrap_or_default(), number(f64::from(novelty))),
        ));
    }
    if let Some(loss) = trace.loss {
        lines.push(("loss", number(loss)));
    }
    if let Some(sharpening) = trace.sharpening {
        let share = trace.sharpening_share;
        let share = share.map(|s| format!(", {:.0} % of the change", 100.0 * s));
        lines.push(("sharpening", number(sharpening) + &share.unwrap_or_default()));
    }
    lines
}

fn steered(steering: Steering) -> &'static str {
    match steering {
        Steering::Off => "no: not steered by a distiller",
        Steering::Contrasted => "yes: contrasted with another model",
        Steering::OtherNotFinite => "no: a logit of the other model was not finite",
        Steering::FirstToken => "no: the first token",
        Steering::Untrained => "no: the distiller was warming up",
        Steering::NotFinite => "no: the hidden state was not finite",
        Steering::Steered => "yes",
        _ => "unknown",
    }
}

/// Both values with an arrow, or one if they look the same.
fn change(before: String, after: String) -> String {
    if before == after { after } else { format!("{before} → {after}") }
}
