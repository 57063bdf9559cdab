//! Shows a run as one self-contained HTML file with the completions of a prompt side by side.
//!
//! Each token is tinted by its novelty. On hover or keyboard focus the page shows the distribution the
//! token was chosen from and what steering did to it. Charts below show loss, novelty and entropy over the
//! completions. All data comes from the traces an observer receives ([`esamp::telemetry::Recorder`]).

mod chart;
mod markup;
mod scale;
mod token;

use esamp::{
    Completion, Detokenize, FinishReason, TextStream,
    errors::TextError,
    telemetry::{Recorder, RowTrace},
};

use chart::{Chart, Line};
pub use markup::escaped;
use scale::Scale;

/// The contents of the page.
#[derive(Clone, Debug)]
pub struct Page {
    /// The headline: the name of the model.
    pub title: String,
    /// The prompt.
    pub prompt: String,
    /// A summary of the settings common to all arms.
    pub settings: String,
    /// The arms, from top to bottom.
    pub arms: Vec<ShownArm>,
}

/// One arm: the completions of the prompt, in columns.
#[derive(Clone, Debug)]
pub struct ShownArm {
    /// The name of the arm.
    pub name: String,
    /// A summary of the arm's figures.
    pub facts: String,
    /// The completions, by index.
    pub completions: Vec<ShownCompletion>,
    /// Records lost because the recorder was full.
    pub dropped: u64,
}

/// One completion.
#[derive(Clone, Debug)]
pub struct ShownCompletion {
    /// The tokens, in order.
    pub tokens: Vec<ShownToken>,
    /// Why the completion ended.
    pub ending: String,
}

/// One token.
#[derive(Clone, Debug)]
pub struct ShownToken {
    /// The text the token adds; empty for special tokens and for tokens that end inside a character.
    pub text: String,
    /// The text of the token that would have been chosen without steering, if it differs.
    pub unsteered: Option<String>,
    /// The trace of the token.
    pub trace: RowTrace,
}

impl ShownArm {
    /// The completions of one prompt, with the traces that `recorder` holds.
    ///
    /// # Errors
    ///
    /// Fails if the detokenizer does.
    pub fn new(
        name: impl Into<String>,
        facts: impl Into<String>,
        completions: &[Completion],
        recorder: &Recorder,
        detokenizer: &dyn Detokenize,
    ) -> Result<Self, TextError> {
        let mut by_index: Vec<&Completion> = completions.iter().collect();
        by_index.sort_by_key(|completion| completion.id.index);
        let shown = by_index.into_iter().map(|completion| {
            let traces = recorder.tokens().filter(|trace| trace.completion == completion.id);
            Ok(ShownCompletion {
                tokens: tokens(traces, detokenizer)?,
                ending: ending(&completion.finish),
            })
        });
        Ok(Self {
            name: name.into(),
            facts: facts.into(),
            completions: shown.collect::<Result<_, TextError>>()?,
            dropped: recorder.dropped(),
        })
    }

    fn tokens(&self) -> impl Iterator<Item = &ShownToken> {
        self.completions.iter().flat_map(|completion| &completion.tokens)
    }

    /// Summarises a value per token by position, leaving out positions where no token has it.
    fn line(&self, arm: usize, number: impl Fn(&RowTrace) -> Option<f64>) -> Line {
        let longest = self.completions.iter().map(|c| c.tokens.len()).max().unwrap_or(0);
        let points = (0..longest).filter_map(|place| {
            let tokens = self.completions.iter().filter_map(|c| c.tokens.get(place));
            let numbers: Vec<f64> = tokens.filter_map(|token| number(&token.trace)).collect();
            chart::Point::of(place, &numbers)
        });
        Line { name: self.name.clone(), arm, points: points.collect() }
    }
}

/// Pairs the tokens with their texts, which depend on the tokens before.
fn tokens<'a>(
    traces: impl Iterator<Item = &'a RowTrace>,
    detokenizer: &dyn Detokenize,
) -> Result<Vec<ShownToken>, TextError> {
    let mut stream = TextStream::default();
    let mut shown: Vec<ShownToken> = Vec::new();
    for trace in traces {
        let other = trace.unsteered_token.filter(|&other| other != trace.token);
        shown.push(ShownToken {
            text: stream.push(trace.token, detokenizer)?,
            unsteered: other.map(|other| detokenizer.decode(&[other])).transpose()?,
            trace: trace.clone(),
        });
    }
    // Bytes of an incomplete character at the end.
    let rest = stream.finish();
    if let Some(last) = shown.last_mut() {
        last.text.push_str(&rest);
    }
    Ok(shown)
}

fn ending(finish: &FinishReason) -> String {
    match finish {
        FinishReason::StopToken(_) => "ended by itself".to_owned(),
        FinishReason::StopString(stop) => format!("ended with {stop:?}"),
        FinishReason::MaxNewTokens => "cut off".to_owned(),
        FinishReason::ContextFull => "cut off: the context is full".to_owned(),
        FinishReason::Failed(error) => format!("failed: {error}"),
        FinishReason::NoText(error) => format!("failed: {error}"),
        other => other.name().replace('_', " "),
    }
}

/// The values a token can be tinted by, in the order of the switch.
const TINTS: [Tint; 3] = [
    Tint {
        name: "novelty",
        variable: "--n",
        unit: "of the deep state",
        number: |trace| trace.relative_novelty,
    },
    Tint {
        name: "surprisal",
        variable: "--s",
        unit: "nats",
        number: |trace| Some(trace.surprisal),
    },
    Tint {
        name: "change",
        variable: "--k",
        unit: "nats, KL(new ‖ reference)",
        number: |trace| Some(trace.kl),
    },
];

struct Tint {
    name: &'static str,
    variable: &'static str,
    unit: &'static str,
    number: fn(&RowTrace) -> Option<f64>,
}

impl Page {
    /// Renders the HTML file.
    pub fn html(&self) -> String {
        let title = escaped(&self.title);
        let scales = TINTS.map(|tint| {
            let tokens = self.arms.iter().flat_map(ShownArm::tokens);
            Scale::of(tokens.filter_map(|token| (tint.number)(&token.trace)).collect())
        });
        let arms = self.arms.iter().enumerate();
        let arms: String = arms.map(|(at, arm)| arm_section(at, arm, &scales)).collect();
        let body = format!(
            "<header>\n<h1>{title}</h1>\n<p class=\"settings\">{}</p>\n\
             <blockquote class=\"prompt\">{}</blockquote>\n{}</header>\n<main>\n{arms}{}</main>\n",
            escaped(&self.settings),
            escaped(&self.prompt),
            switch(&scales),
            self.charts(),
        );
        document(&Document {
            title: &format!("{}: completions", self.title),
            body: &body,
            ..Document::default()
        })
    }

    fn charts(&self) -> String {
        let lines = |number: fn(&RowTrace) -> Option<f64>| {
            let arms = self.arms.iter().enumerate();
            arms.map(|(at, arm)| arm.line(at, number)).collect::<Vec<_>>()
        };
        let charts = [
            Chart {
                title: "Novelty", unit: "‖e‖ / ‖deep‖", lines: lines(|t| t.relative_novelty)
            },
            Chart {
                title: "Loss of the distiller",
                unit: "before the update",
                lines: lines(|t| t.loss),
            },
            Chart {
                title: "Entropy of the choice",
                unit: "nats",
                lines: lines(|t| Some(t.entropy)),
            },
        ];
        let charts: String = charts.iter().map(Chart::svg).collect();
        format!(
            "<section class=\"charts\">\n<h2>Over the completion</h2>\n\
             <p>Mean over the completions of an arm, token by token; the band is from the smallest to the \
             largest value.</p>\n<div class=\"row\">\n{charts}</div>\n</section>\n"
        )
    }
}

/// What differs between pages that show tinted tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Document<'a> {
    /// The title of the window, as plain text.
    pub title: &'a str,
    /// HTML.
    pub body: &'a str,
    /// CSS after that of every page.
    pub style: &'a str,
    /// JavaScript after that of every page.
    pub script: &'a str,
    /// Whether scripts may make requests to the server that the page is from.
    pub connects: bool,
}

/// One self-contained HTML file, which loads nothing. Elements of class `t` with an attribute `data-tip` (lines of a
/// name, a tab and a value) get a tooltip, and are tinted by the CSS variables of [`Page`].
pub fn document(document: &Document<'_>) -> String {
    let Document { title, body, style, script, connects } = document;
    let connects = if *connects { "; connect-src 'self'" } else { "" };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'{connects}\">\n\
         <title>{}</title>\n<style>\n{}{style}</style>\n</head>\n<body>\n{body}\
         <div id=\"tip\" role=\"tooltip\" hidden></div>\n<script>\n{}{script}</script>\n</body>\n</html>\n",
        escaped(title),
        include_str!("page.css"),
        include_str!("page.js"),
    )
}

/// The switch between tints, with a legend for each.
fn switch(scales: &[Option<Scale>; TINTS.len()]) -> String {
    let mut choices = String::new();
    let mut legends = String::new();
    for (at, (tint, scale)) in TINTS.iter().zip(scales).enumerate() {
        let name = tint.name;
        let checked = if at == 0 { " checked" } else { "" };
        choices.push_str(&format!(
            "<label><input type=\"radio\" name=\"tint\" id=\"by-{name}\"{checked}>{name}</label>"
        ));
        let ends = match scale {
            Some(scale) => format!(
                "<span>{}</span><i class=\"ramp\"></i><span>{} {}</span>",
                markup::number(scale.low()),
                markup::number(scale.high()),
                tint.unit
            ),
            None => "<span>no token of this run has a value</span>".to_owned(),
        };
        legends.push_str(&format!("<span class=\"legend {name}\">{ends}</span>"));
    }
    format!(
        "<div class=\"switch\"><span role=\"radiogroup\" aria-label=\"tint\">tint by {choices}</span>{legends}\
         <span class=\"legend-mark\"><b>underlined</b> would be \
         a different token without steering</span></div>\n\
         <noscript><p>Enable JavaScript to see the figures of each token.</p></noscript>\n"
    )
}

fn arm_section(at: usize, arm: &ShownArm, scales: &[Option<Scale>; TINTS.len()]) -> String {
    let columns = arm.completions.iter().enumerate();
    let columns: String = columns.map(|(at, c)| column(at, c, scales)).collect();
    let expected = arm.tokens().any(|token| token.trace.novelty.is_some());
    let tinted = if expected { "" } else { " (no distiller, so no novelty)" };
    let missing = match arm.dropped {
        0 => String::new(),
        records => format!(
            "<p class=\"missing\">{records} records exceeded the limit of the recorder: tokens are \
             missing here.</p>\n"
        ),
    };
    format!(
        "<section class=\"arm\">\n<h2><i class=\"swatch arm-{}\"></i>{} <small>{}{tinted}</small></h2>\n{missing}\
         <div class=\"columns\">\n{columns}</div>\n</section>\n",
        at % chart::COLOURS,
        escaped(&arm.name),
        escaped(&arm.facts),
    )
}

fn column(
    at: usize,
    completion: &ShownCompletion,
    scales: &[Option<Scale>; TINTS.len()],
) -> String {
    let tokens = completion.tokens.iter().enumerate();
    let tokens: String =
        tokens.map(|(place, token)| token::element(token, place == 0, scales)).collect();
    let count = completion.tokens.len();
    let changed = completion.tokens.iter().filter(|token| token.unsteered.is_some()).count();
    let changed = match changed {
        0 => String::new(),
        changed => format!(", {changed} changed by steering"),
    };
    format!(
        "<article>\n<h3>{} <small>{count} tokens{changed}; {}</small></h3>\n\
         <p class=\"text\" dir=\"auto\">{tokens}</p>\n</article>\n",
        at + 1,
        escaped(&completion.ending),
    )
}
