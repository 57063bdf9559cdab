//! Prints two columns of text, during the run and after it.

use std::io::{self, Write};

use crate::{
    columns::{GAP, side_by_side, wrap},
    console::{Term, measure_text_width, style},
};
use esamp::Sampling;

use super::{Model, args::Args, arms::Arm, settings::name_of};

/// Standard output, which may be a terminal.
pub struct Screen {
    term: Term,
    width: usize,
    silent: bool,
    /// Lines drawn by the last call of `live`.
    drawn: usize,
}

/// Width in columns if standard output is no terminal.
const PAGE_WIDTH: usize = 110;

impl Screen {
    /// A screen; prints nothing if `silent`.
    pub fn new(silent: bool) -> Self {
        let term = Term::stdout();
        let width = match term.size_checked() {
            Some((_, columns)) => usize::from(columns).clamp(40, 180),
            None => PAGE_WIDTH,
        };
        Self { term, width, silent, drawn: 0 }
    }

    /// Prints the model, the settings and the prompt.
    pub fn headline<M: Model>(
        &self,
        model: &str,
        args: &Args,
        arms: &[Arm<'_, M>],
        prompt_tokens: usize,
    ) -> io::Result<()> {
        if self.silent {
            return Ok(());
        }
        let settings = arms.last().map(|arm| said(&arm.settings.sampling)).unwrap_or_default();
        let beta = match arms.last() {
            Some(arm) if arm.settings.steered => format!(", β {}", arm.settings.sampling.beta),
            _ => String::new(),
        };
        writeln!(
            io::stdout(),
            "{}  {} completions, seed {}, {settings}{beta}",
            style(model).bold(),
            args.samples,
            args.seed,
        )?;
        let prompt = format!("prompt ({prompt_tokens} tokens): {}\n\n", args.prompt);
        print_lines(wrap(&prompt, self.width))
    }

    /// Redraws the last lines of all completions. Does nothing if standard output is no terminal.
    pub fn live<M: Model>(&mut self, arms: &[Arm<'_, M>]) {
        if self.silent || !self.term.is_term() {
            return;
        }
        let samples = arms.first().map_or(0, |arm| arm.texts.len());
        let (rows, _) = self.term.size();
        let each = (usize::from(rows).saturating_sub(6) / samples.max(1)).clamp(1, 6);
        let mut lines = Vec::new();
        for sample in 0..samples {
            let columns = arms.iter().map(|arm| {
                let wrapped = wrap(&arm.texts[sample], self.column(arms.len()));
                wrapped[wrapped.len().saturating_sub(each)..].to_vec()
            });
            let mut block = side_by_side(&columns.collect::<Vec<_>>(), self.column(arms.len()));
            block.resize(each, String::new());
            lines.append(&mut block);
        }
        lines.truncate(usize::from(rows).saturating_sub(2));
        // Ignore write errors: a closed terminal must not end the run, and `result` prints everything
        // again.
        let _ = self.term.clear_last_lines(self.drawn);
        let _ = self.term.write_line(&lines.join("\n"));
        self.drawn = lines.len();
    }

    /// Prints all completions in full, and the figures.
    pub fn result<M: Model>(&mut self, arms: &[Arm<'_, M>]) -> io::Result<()> {
        if self.drawn > 0 {
            let _ = self.term.clear_last_lines(self.drawn);
        }
        let column = self.column(arms.len());
        let titles: Vec<Vec<String>> = arms
            .iter()
            .map(|arm| vec![style(title(&arm.settings.name)).bold().to_string()])
            .collect();
        print_lines(side_by_side(&titles, column))?;
        let rule: Vec<String> = arms.iter().map(|_| "─".repeat(column)).collect();
        writeln!(io::stdout(), "{}", rule.join("──┼──"))?;
        for sample in 0..arms.first().map_or(0, |arm| arm.texts.len()) {
            let texts: Vec<Vec<String>> = arms
                .iter()
                .map(|arm| {
                    let text = format!("{}. {}", sample + 1, arm.texts[sample].trim());
                    let mut lines = wrap(&text, column);
                    if let Some(failure) = arm.failure(sample) {
                        lines.extend(wrap(&format!("[failed: {failure}]"), column));
                    }
                    lines.push(String::new());
                    lines
                })
                .collect();
            print_lines(side_by_side(&texts, column))?;
        }
        let numbers = arms.iter().map(|arm| wrap(&numbers(arm).join("\n"), column));
        print_lines(side_by_side(&numbers.collect::<Vec<_>>(), column))
    }

    fn column(&self, arms: usize) -> usize {
        let gaps = arms.saturating_sub(1) * measure_text_width(GAP);
        (self.width - gaps) / arms.max(1)
    }
}

/// The temperature and the filters as text.
pub fn said(sampling: &Sampling) -> String {
    let mut words = vec![format!("T {}", sampling.temperature)];
    words.extend(sampling.filters().iter().map(|filter| {
        // Serialised as {"xtc":{"threshold":0.1,"probability":0.5}}: keep the name and the numbers.
        let written = serde_json::to_string(filter).unwrap_or_default();
        let numbers =
            written.split([':', ',', '{', '}']).filter(|word| word.parse::<f32>().is_ok());
        format!("{} {}", name_of(filter), numbers.collect::<Vec<_>>().join(" "))
    }));
    words.join(", ")
}

/// The counters of an arm, in one line.
pub fn summary<M: Model>(arm: &Arm<'_, M>) -> String {
    let counters = arm.counters();
    let mean = counters.candidates as f64 / counters.tokens.max(1) as f64;
    let warm_up = match counters.warm_up_updates {
        0 => String::new(),
        updates => format!(", {updates} warm-up updates"),
    };
    format!(
        "{}: {} tokens, {} updates, {} rows learned{warm_up}, {mean:.1} mean candidates, {} interventions",
        arm.settings.name,
        counters.tokens,
        counters.updates,
        counters.rows_learned,
        counters.interventions,
    )
}

/// The display name of an arm.
pub fn title(name: &str) -> &str {
    match name {
        "esamp" => "ESamp",
        other => other,
    }
}

/// The speed and the counters of an arm, one line each.
pub fn numbers<M: Model>(arm: &Arm<'_, M>) -> Vec<String> {
    let counters = arm.counters();
    let speed = arm.stats().tokens_per_second();
    let mut lines = vec![match speed {
        Some(speed) => format!("{speed:.1} tokens/s, {} tokens", counters.tokens),
        None => format!("{} tokens", counters.tokens),
    }];
    if let (Some(novelty), Some(loss)) = (counters.mean_relative_novelty(), counters.mean_loss()) {
        lines.push(format!("{} updates on {} rows", counters.updates, counters.rows_learned));
        lines.push(format!("mean novelty {novelty:.2} of the deep state, mean loss {loss:.3}"));
    }
    let skipped = counters.rows_not_finite + counters.other_not_finite;
    if skipped > 0 {
        lines.push(format!(
            "{skipped} of {} tokens not steered, because a value was not finite",
            counters.tokens
        ));
    }
    lines
}

fn print_lines(lines: Vec<String>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    lines.iter().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}
