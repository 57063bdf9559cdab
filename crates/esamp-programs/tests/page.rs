//! The page of a run has one element per token with the figures of its trace, and model output cannot break
//! it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use burn::tensor::Device;
use esamp::{
    CausalLm, Completion, Decoder, FinishReason, Request, SamplerConfig, Sampling, TokenId,
    errors::TextError,
    telemetry::{Observer, Recorder, Steering},
    testing::TinyLm,
};
use esamp_programs::page::{Page, ShownArm};

fn words(tokens: &[TokenId]) -> Result<String, TextError> {
    Ok(tokens.iter().map(|token| format!(" w{token}")).collect())
}

/// Three completions of twelve tokens, and a recorder with this limit.
fn run(beta: f32, limit: usize) -> (Vec<Completion>, Recorder) {
    let recorder = Arc::new(Mutex::new(Recorder::new().with_limit(limit)));
    let model = TinyLm::new(1, &Device::flex());
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap().with_observer(recorder.clone());
    let sampling = Sampling::paper().with_beta(beta);
    let request = Request::new(vec![1, 2, 3])
        .with_completions(3)
        .with_max_new_tokens(12)
        .with_seed(5)
        .with_sampling(sampling);
    decoder.submit(request).unwrap();
    let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
    let recorder = recorder.lock().unwrap().clone();
    (completions, recorder)
}

fn page(arms: Vec<ShownArm>) -> String {
    let (title, prompt) = ("TinyLm".to_owned(), "once".to_owned());
    Page { title, prompt, settings: "T 1".to_owned(), arms }.html()
}

/// A page with a plain and a steered arm.
fn two_arms() -> (String, Recorder) {
    let (plain, plain_recorder) = run(0.0, 1000);
    let (steered, recorder) = run(1.0, 1000);
    let plain = ShownArm::new("plain", "", &plain, &plain_recorder, &words).unwrap();
    let steered = ShownArm::new("ESamp", "β 1", &steered, &recorder, &words).unwrap();
    (page(vec![plain, steered]), recorder)
}

fn unescaped(text: &str) -> String {
    [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// A parsed token element.
#[derive(Debug)]
struct Element {
    class: String,
    style: String,
    tip: Vec<(String, String)>,
    text: String,
}

impl Element {
    fn said(&self, name: &str) -> Option<&str> {
        self.tip.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn tint(&self, variable: &str) -> Option<f64> {
        let parts = self.style.split(';').filter_map(|part| part.split_once(':'));
        parts.filter(|(name, _)| *name == variable).map(|(_, share)| share.parse().unwrap()).next()
    }
}

fn elements(html: &str) -> Vec<Element> {
    let attribute = |tag: &str, name: &str| {
        let value = tag.split_once(&format!(" {name}=\"")).unwrap().1.split_once('"').unwrap().0;
        unescaped(value)
    };
    let element = |rest: &str| {
        let rest = format!(" class=\"t{rest}");
        let (tag, rest) = rest.split_once('>').unwrap();
        let tip = attribute(tag, "data-tip");
        let tip = tip.lines().map(|line| line.split_once('\t').unwrap());
        Element {
            class: attribute(tag, "class"),
            style: attribute(tag, "style"),
            tip: tip.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            text: unescaped(
                &rest.split_once("</span>").unwrap().0.replace("<b>", "").replace("</b>", ""),
            ),
        }
    };
    html.split("<span class=\"t").skip(1).map(element).collect()
}

/// Parses a number as written on the page.
fn number(text: &str) -> f64 {
    text.trim().trim_end_matches(" %").replace('−', "-").parse().unwrap()
}

/// The values on both sides of an arrow, or a single value twice.
fn before_and_after(text: &str) -> (f64, f64) {
    match text.split_once(" → ") {
        Some((before, after)) => (number(before), number(after)),
        None => (number(text), number(text)),
    }
}

#[track_caller]
fn assert_shows(shown: f64, value: f64) {
    assert!((shown - value).abs() <= 0.0051 * value.abs() + 1e-9, "{shown} for {value}");
}

#[test]
fn there_is_one_element_per_token_and_it_has_the_numbers_of_its_trace() {
    let (html, recorder) = two_arms();
    let elements = elements(&html);
    assert_eq!(elements.len(), 2 * 3 * 12);
    let mut steered = elements[36..].iter();
    let mut changed = 0;
    for request in 0..3 {
        for trace in recorder.tokens().filter(|trace| trace.completion.index == request) {
            let element = steered.next().unwrap();
            assert_eq!(element.text, format!(" w{}", trace.token));
            let (before, after) = before_and_after(element.said("probability").unwrap());
            assert_shows(before, 100.0 * (-trace.surprisal).exp());
            assert_shows(after, 100.0 * f64::from(trace.log_prob).exp());
            let (before, after) = before_and_after(element.said("log-probability").unwrap());
            assert_shows(before, -trace.surprisal);
            assert_shows(after, f64::from(trace.log_prob));
            let (ranks, of) = element.said("rank").unwrap().split_once(" of ").unwrap();
            let (before, after) = before_and_after(ranks);
            let ranks = [trace.reference_rank, trace.rank].map(|rank| rank as f64 + 1.0);
            assert_eq!(([before, after], number(of)), (ranks, trace.candidates as f64));
            let entropy = element.said("entropy").unwrap().trim_end_matches(" nats");
            let (before, after) = before_and_after(entropy);
            assert_shows(before, trace.reference_entropy);
            assert_shows(after, trace.entropy);
            assert_shows(
                number(element.said("loss").map_or("0", |loss| loss)),
                trace.loss.unwrap_or(0.0),
            );

            let first = trace.steering == Steering::FirstToken;
            assert_eq!(first, trace.position == 0);
            assert_eq!(
                element.said("steered"),
                Some(if first { "no: the first token" } else { "yes" })
            );
            assert_eq!(element.said("novelty").is_some(), !first);
            if let (Some(said), Some(relative)) = (element.said("novelty"), trace.relative_novelty)
            {
                let (share, rest) = said.split_once(" of the deep state, ‖e‖ ").unwrap();
                assert_shows(number(share), relative);
                assert_shows(number(rest), f64::from(trace.novelty.unwrap()));
            }
            let other = trace.unsteered_token.filter(|&other| other != trace.token);
            assert_eq!(element.class.contains("changed"), other.is_some());
            if let Some(other) = other {
                changed += 1;
                assert_eq!(element.said("without steering"), Some(&*format!("\" w{other}\"")));
            }
        }
    }
    assert!(changed > 0 && steered.next().is_none());
    assert!(elements[..36].iter().all(|element| element.said("novelty").is_none()));
}

#[test]
fn the_more_novel_a_token_the_stronger_its_tint() {
    let (html, recorder) = two_arms();
    let elements = elements(&html);
    assert!(elements[..36].iter().all(|element| element.tint("--n").is_none()), "plain");
    let mut tints = Vec::new();
    let traces = (0..3).flat_map(|r| recorder.tokens().filter(move |t| t.completion.index == r));
    for (element, trace) in elements[36..].iter().zip(traces) {
        assert_eq!(element.tint("--n").is_some(), trace.relative_novelty.is_some());
        assert!(element.tint("--s").is_some() && element.tint("--k").is_some());
        tints.extend(trace.relative_novelty.zip(element.tint("--n")));
    }
    tints.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(tints.is_sorted_by(|a, b| a.1 <= b.1), "{tints:?}");
    assert_eq!((tints[0].1, tints[tints.len() - 1].1), (0.0, 1.0));
}

/// Position, mean, smallest and largest value of each point of an arm in a chart.
fn points(html: &str, chart: usize, arm: &str) -> Vec<(u64, [f64; 3])> {
    let chart = html.split("<figure>").nth(chart + 1).unwrap();
    let titles = chart.split("<title>").skip(1).map(|rest| rest.split_once("</title>").unwrap().0);
    let of_arm = titles.filter_map(|title| title.strip_prefix(&format!("{arm}, token ")));
    of_arm
        .map(|title| {
            let (place, rest) = title.split_once(": ").unwrap();
            let (mean, rest) = rest.trim_end_matches(')').split_once(" (").unwrap();
            let (least, greatest) = rest.split_once(" to ").unwrap();
            (place.parse().unwrap(), [mean, least, greatest].map(number))
        })
        .collect()
}

#[test]
fn the_charts_are_those_of_the_recording() {
    let (html, recorder) = two_arms();
    assert_eq!(html.matches("<figure>").count(), 3);
    let loss = points(&html, 1, "ESamp");
    let curve = recorder.loss_curve();
    assert_eq!((loss.len(), curve.len()), (11, 11));
    for ((place, [mean, _, _]), (step, expected)) in loss.iter().zip(curve) {
        assert_eq!(*place, step + 1);
        assert_shows(*mean, expected);
    }
    assert!(points(&html, 1, "plain").is_empty(), "nothing was learned there");
    let novelty = points(&html, 0, "ESamp");
    assert_eq!(novelty.len(), 11);
    for (place, [_, least, greatest]) in novelty {
        let at_place = recorder.tokens().filter(|trace| trace.position + 1 == place);
        let all: Vec<f64> = at_place.map(|trace| trace.relative_novelty.unwrap()).collect();
        assert_shows(least, all.iter().copied().fold(f64::INFINITY, f64::min));
        assert_shows(greatest, all.iter().copied().fold(0.0, f64::max));
    }
    for arm in ["plain", "ESamp"] {
        assert_eq!(points(&html, 2, arm).len(), 12);
    }
}

#[test]
fn a_run_without_a_distiller_says_that_there_is_no_novelty() {
    let (completions, recorder) = run(0.0, 1000);
    let html = page(vec![ShownArm::new("plain", "", &completions, &recorder, &words).unwrap()]);
    assert_eq!(html.matches("No token of this run has a value.").count(), 2, "novelty and loss");
    assert_eq!(
        html.matches("no token of this run has a value").count(),
        1,
        "the legend of novelty"
    );
    assert_eq!(elements(&html).len(), 36);
    check_nesting(&html);
    check_nesting(&page(Vec::new()));
}

/// Checks that every element is closed in the right order.
fn check_nesting(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html;
    while let Some((_, tag)) = rest.split_once('<') {
        let (tag, behind) = tag.split_once('>').unwrap();
        rest = behind;
        let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "<{tag}>");
        } else if !tag.ends_with('/') && !["!doctype", "meta", "input"].contains(&name) {
            open.push(name);
        }
        if ["style", "script"].contains(&name) && !tag.starts_with('/') {
            rest = &rest[rest.find("</").unwrap()..];
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn no_model_output_breaks_the_page() {
    const WRONG: &str =
        "</p></style></script><script>alert('1')</script>\" onfocus=\"x & &lt;\u{202e}\u{7}";
    let (mut completions, recorder) = run(1.0, 1000);
    completions[0].finish = FinishReason::NoText(TextError::new(WRONG));
    completions[1].finish = FinishReason::StopString(WRONG.to_owned());
    let says = |tokens: &[TokenId]| -> Result<String, TextError> { Ok(WRONG.repeat(tokens.len())) };
    let arm = ShownArm::new(WRONG, WRONG, &completions, &recorder, &says).unwrap();
    let [title, prompt, settings] = [WRONG; 3].map(str::to_owned);
    let html = Page { title, prompt, settings, arms: vec![arm] }.html();
    check_nesting(&html);
    assert_eq!((html.matches("<script").count(), html.matches("</script").count()), (1, 1));
    assert_eq!((html.matches("<style").count(), html.matches("</style").count()), (1, 1));
    assert!(!html.contains("onfocus=\""));
    assert!(!html.contains(['\u{202e}', '\u{7}']));
    // Two for each token (text and tooltip), two for the title; then settings, prompt, name, facts, two
    // endings, and the name at each point of the charts.
    let elements = elements(&html);
    assert_eq!(elements.len(), 36);
    let visible = WRONG.replace('\u{202e}', "\\u{202e}").replace('\u{7}', "\\u{7}");
    for element in &elements {
        assert_eq!(element.text, visible);
        assert!(element.said("token").unwrap().ends_with("of the completion"));
    }
}

#[test]
fn a_character_of_several_tokens_comes_with_its_last_one_and_every_token_is_there() {
    let (completions, recorder) = run(0.0, 1000);
    let mut crabs = Recorder::new();
    for trace in recorder.tokens() {
        let mut trace = trace.clone();
        trace.token = (trace.position % 4) as TokenId;
        crabs.token(&trace);
    }
    // Each token is one of the four bytes of a crab.
    let bytes = |tokens: &[TokenId]| -> Result<String, TextError> {
        let bytes: Vec<u8> = tokens.iter().map(|&token| "🦀".as_bytes()[token as usize]).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let shown = ShownArm::new("plain", "", &completions, &crabs, &bytes).unwrap();
    let elements = elements(&page(vec![shown]));
    assert_eq!(elements.len(), 36);
    for (place, element) in elements.iter().enumerate() {
        let last = place % 4 == 3;
        assert_eq!(element.text, if last { "🦀" } else { "" });
        assert_eq!(element.class.contains("none"), !last, "it can be pointed at");
    }
}

#[test]
fn records_that_the_recorder_dropped_are_reported_as_missing() {
    // Each step makes three token records and a step record.
    let (completions, recorder) = run(1.0, 10);
    let html = page(vec![ShownArm::new("ESamp", "", &completions, &recorder, &words).unwrap()]);
    assert_eq!(elements(&html).len(), 8);
    assert!(html.contains("38 records exceeded the limit of the recorder"));
}
