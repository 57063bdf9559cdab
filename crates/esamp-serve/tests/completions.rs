//! What a client gets that asks well.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod server;

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use server::{Server, ask, get, model, texts};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

#[test]
fn four_completions_are_whole_and_counted() {
    let server = Server::start(model(), &[]);
    let answer = server.post(COMPLETIONS, &ask(json!({"n": 4, "seed": 3, "user": "me"})));
    let body = answer.json();
    assert_eq!((answer.status, &body["object"]), (200, &json!("text_completion")), "{body}");
    let texts = texts(&answer);
    assert_eq!(texts.iter().collect::<HashSet<_>>().len(), 4, "{texts:?}");
    for (index, choice) in body["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(choice["text"].as_str().unwrap().split_whitespace().count(), 12);
    }
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 48, "total_tokens": 50});
    assert_eq!(body["usage"], usage);
    assert_eq!(body["esamp"], json!({"seed": 3}));
    assert!(server.metric("sampler_steered_total") > 0.0);
    assert_eq!(server.metric("requests_open"), 0.0);
}

#[test]
fn a_seed_decides_the_text_and_without_one_texts_differ() {
    let server = Server::start(model(), &[]);
    let seeded = |seed: u64| texts(&server.post(COMPLETIONS, &ask(json!({"seed": seed, "n": 2}))));
    assert_eq!(seeded(5), seeded(5));
    assert_ne!(seeded(5), seeded(6));
    let first = server.post(COMPLETIONS, &ask(json!({})));
    let second = server.post(COMPLETIONS, &ask(json!({})));
    assert_ne!(texts(&first), texts(&second));
    // The seed that was drawn gives the text again.
    let seed = first.json()["esamp"]["seed"].as_u64().unwrap();
    assert!(seed < 1 << 53);
    assert_eq!(texts(&server.post(COMPLETIONS, &ask(json!({"seed": seed})))), texts(&first));
}

#[test]
fn a_stream_has_the_text_of_the_whole_response_in_order() {
    let server = Server::start(model(), &[]);
    let whole = texts(&server.post(COMPLETIONS, &ask(json!({"n": 4, "seed": 9}))));
    let options = json!({"include_usage": true});
    let streamed = server.post(
        COMPLETIONS,
        &ask(json!({"n": 4, "seed": 9, "stream": true, "stream_options": options})),
    );
    assert!(streamed.head.contains("content-type: text/event-stream"), "{}", streamed.head);
    let (mut chunks, is_done) = streamed.chunks();
    assert!(is_done);
    let last = chunks.pop().unwrap();
    assert!(chunks.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)), "{chunks:?}");
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(48)));
    let mut said: BTreeMap<u64, (String, Value)> = BTreeMap::new();
    for chunk in &chunks {
        assert_eq!(chunk["id"], chunks[0]["id"]);
        let choice = &chunk["choices"][0];
        let entry = said.entry(choice["index"].as_u64().unwrap()).or_default();
        assert!(entry.1.is_null(), "nothing after the end of a completion: {chunk}");
        entry.0.push_str(choice["text"].as_str().unwrap());
        entry.1 = choice["finish_reason"].clone();
    }
    let said: Vec<String> = said
        .into_values()
        .map(|(text, finish)| {
            assert_eq!(finish, "length");
            text
        })
        .collect();
    assert_eq!(said, whole);
}

#[test]
fn chat_renders_the_template_and_opens_with_the_role() {
    let server = Server::start(model(), &[]);
    let messages = json!([
        {"role": "developer", "content": "w7"},
        {"role": "user", "content": [{"type": "text", "text": "w8 "}, {"type": "text", "text": "w9"}]},
    ]);
    let ask = |stream: bool| {
        json!({"model": "words", "messages": messages, "max_completion_tokens": 5, "seed": 1,
               "stream": stream, "response_format": {"type": "text"}, "tools": [], "top_logprobs": 0})
    };
    let whole = server.post(CHAT, &ask(false));
    let body = whole.json();
    assert_eq!(whole.status, 200, "{body}");
    // w1 w7 w1 w8 w9 w3
    assert_eq!(body["usage"]["prompt_tokens"], 6);
    let message = &body["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    let streamed = server.post(CHAT, &ask(true));
    let (chunks, is_done) = streamed.chunks();
    assert!(is_done);
    let delta = |chunk: &Value| chunk["choices"][0]["delta"].clone();
    assert_eq!(delta(&chunks[0]), json!({"role": "assistant", "content": ""}));
    let roles = chunks.iter().filter(|chunk| !delta(chunk)["role"].is_null());
    assert_eq!(roles.count(), 1);
    let content = |chunk: &Value| delta(chunk)["content"].as_str().unwrap_or_default().to_owned();
    let said: String = chunks.iter().map(content).collect();
    assert_eq!(json!(said), message["content"]);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn without_a_limit_chat_goes_on_until_the_context_is_full() {
    let server = Server::start(model(), &[]);
    let messages = json!([{"role": "user", "content": "w8"}]);
    let ask = json!({"model": "words", "messages": messages, "esamp": {"beta": 0}});
    let body = server.post(CHAT, &ask).json();
    assert_eq!(body["usage"]["total_tokens"], 512, "{body}");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[test]
fn log_probabilities_are_the_models_and_their_texts_are_the_text() {
    let server = Server::start(model(), &[]);
    let fields = json!({"logprobs": 0, "temperature": 0.5, "esamp": {"details": true}});
    let body = server.post(COMPLETIONS, &ask(fields)).json();
    let choice = &body["choices"][0];
    let shown = &choice["logprobs"];
    let texts: Vec<&str> =
        shown["tokens"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert_eq!(texts.concat(), choice["text"].as_str().unwrap());
    let log_probs = shown["token_logprobs"].as_array().unwrap();
    assert!(log_probs.iter().all(|log_prob| log_prob.as_f64().unwrap() < 0.0));
    assert_eq!(shown["text_offset"][1], texts[0].len());
    let tokens = choice["esamp"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 12);
    assert_eq!(tokens[0]["novelty"], Value::Null, "the first token is not steered");
    assert!(tokens[1]["novelty"].as_f64().unwrap() > 0.0);
    let other = server
        .post(
            CHAT,
            &json!({"model": "words", "max_tokens": 3, "logprobs": true,
        "messages": [{"role": "user", "content": "w8"}]}),
        )
        .json();
    let content = other["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 3, "{other}");
    assert_eq!(content[0]["top_logprobs"], json!([]));
}

#[test]
fn the_chosen_token_is_among_the_alternatives_of_a_completion() {
    let server = Server::start(model(), &[]);
    let shown = |fields: Value| {
        let mut fields = fields;
        fields["logit_bias"] = json!({"40": 100});
        fields["max_tokens"] = json!(2);
        server.post(COMPLETIONS, &ask(fields)).json()["choices"][0]["logprobs"].clone()
    };
    for best in [0, 3] {
        let shown = shown(json!({"logprobs": best}));
        for (at, name) in ["w40", " w40"].iter().enumerate() {
            let alternatives = shown["top_logprobs"][at].as_object().unwrap();
            assert_eq!(alternatives.len(), best + 1, "{shown}");
            assert_eq!(alternatives[*name], shown["token_logprobs"][at]);
        }
    }
}

#[test]
fn alternatives_are_the_most_likely_tokens() {
    let server = Server::start(model(), &[]);
    let body = server.post(COMPLETIONS, &ask(json!({"logprobs": 3, "temperature": 0}))).json();
    let shown = &body["choices"][0]["logprobs"];
    assert_eq!(shown["top_logprobs"].as_array().unwrap().len(), 12, "{body}");
    for (at, of_chosen) in shown["token_logprobs"].as_array().unwrap().iter().enumerate() {
        let alternatives = shown["top_logprobs"][at].as_object().unwrap();
        assert_eq!(alternatives.len(), 3);
        // Greedy, so the chosen token is the most likely one.
        let most = alternatives.values().map(|x| x.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(of_chosen.as_f64().unwrap(), most);
    }
    let chat = json!({"model": "words", "max_tokens": 2, "logprobs": true, "top_logprobs": 2,
        "messages": [{"role": "user", "content": "w8"}], "temperature": 0});
    let body = server.post(CHAT, &chat).json();
    for token in body["choices"][0]["logprobs"]["content"].as_array().unwrap() {
        let alternatives = token["top_logprobs"].as_array().unwrap();
        assert_eq!(alternatives.len(), 2, "{body}");
        assert_eq!(alternatives[0]["logprob"], token["logprob"]);
        assert_ne!(alternatives[0]["token"], alternatives[1]["token"]);
    }
    let refused = server.post(
        CHAT,
        &json!({"model": "words", "max_tokens": 2, "top_logprobs": 2,
        "messages": [{"role": "user", "content": "w8"}]}),
    );
    assert_eq!(refused.json()["error"]["param"], "top_logprobs");
}

#[test]
fn settings_reach_the_sampler() {
    let server = Server::start(model(), &[]);
    let text = |fields: Value| texts(&server.post(COMPLETIONS, &ask(fields))).remove(0);
    let plain = |fields: Value| {
        let mut fields = fields;
        fields["esamp"] = json!({"beta": 0});
        text(fields)
    };
    // Greedy, whatever the seed, in three ways.
    let greedy = plain(json!({"temperature": 0}));
    assert_eq!(plain(json!({"top_k": 1, "seed": 4})), greedy);
    assert_eq!(plain(json!({"top_p": 1e-6, "seed": 5})), greedy);
    assert_eq!(plain(json!({"min_p": 1, "seed": 6})), greedy);
    // A bias of 100 leaves one token, and the penalties take it away again.
    let biased = plain(json!({"logit_bias": {"40": 100}, "max_tokens": 3}));
    assert_eq!(biased, "w40 w40 w40");
    let penalised = json!({"logit_bias": {"40": 4}, "temperature": 0, "max_tokens": 2,
                           "presence_penalty": 2, "frequency_penalty": 2});
    assert_eq!(plain(penalised).matches("w40").count(), 1);
    let repeated = json!({"temperature": 0, "repetition_penalty": 10, "max_tokens": 40});
    assert_ne!(plain(repeated), plain(json!({"temperature": 0, "max_tokens": 40})));
    // At 3 words, the stop token w2 would be the next one.
    let ended = json!({"logit_bias": {"2": 100}, "max_tokens": 9});
    assert_eq!(plain(ended.clone()), "");
    let longer = json!({"logit_bias": {"2": 100}, "max_tokens": 9, "min_tokens": 3});
    assert_eq!(plain(longer).split_whitespace().count(), 3);
    // A repeated word, unless it may not be repeated or is a breaker.
    let stutter = |fields: Value| {
        let mut fields = fields;
        fields["logit_bias"] = json!({"40": 9});
        fields["temperature"] = json!(0);
        plain(fields).matches("w40").count()
    };
    assert_eq!(stutter(json!({})), 12);
    assert_eq!(stutter(json!({"no_repeat_ngram_size": 1})), 1);
    assert!(stutter(json!({"no_repeat_ngram_size": 3})) < 12);
    assert!(stutter(json!({"dry_multiplier": 100})) < 12);
    assert_eq!(stutter(json!({"dry_multiplier": 100, "dry_allowed_length": 20})), 12);
    let breakers = json!({"dry_multiplier": 100, "dry_sequence_breakers": [" w40"]});
    assert_eq!(stutter(breakers), 12);
    // Settings that leave no token are the client's mistake.
    let nothing = json!({"no_repeat_ngram_size": 1, "max_tokens": 200, "min_tokens": 200});
    let answer = server.post(COMPLETIONS, &ask(nothing));
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("no_token_left")));
    // A stop string ends the text before itself.
    let second = greedy.split_whitespace().nth(1).unwrap();
    let stopped = server.post(
        COMPLETIONS,
        &ask(json!({"temperature": 0, "stop": [second, "w96"],
                                                       "esamp": {"beta": 0}})),
    );
    assert_eq!(stopped.json()["choices"][0]["finish_reason"], "stop");
    assert_eq!(texts(&stopped)[0].trim_end(), greedy.split_whitespace().next().unwrap());
    // Steering changes the text, and both reweighters differ.
    let steered = |esamp: Value| text(json!({"seed": 2, "max_tokens": 40, "esamp": esamp}));
    let plain = steered(json!({"beta": 0}));
    assert_ne!(steered(json!({"beta": 4})), plain);
    assert_ne!(
        steered(json!({"beta": 4, "reweighter": "orthogonal"})),
        steered(json!({"beta": 4}))
    );
}

#[test]
fn a_seed_may_have_a_sign() {
    let server = Server::start(model(), &[]);
    let said = |seed: Value| {
        let answer = server.post(COMPLETIONS, &ask(json!({"seed": seed})));
        assert_eq!(answer.json()["esamp"]["seed"], seed, "as it was sent");
        texts(&answer)
    };
    let negative = said(json!(-1));
    assert_eq!(said(json!(-1)), negative);
    assert_ne!(said(json!(1)), negative);
    assert_ne!(said(json!(i64::MIN)), negative);
    assert_eq!(said(json!(u64::MAX)), negative, "of the same bits");
}

#[test]
fn a_temperature_that_the_sampler_cannot_divide_by_is_0() {
    let server = Server::start(model(), &[]);
    let said = |temperature: f64, seed: u64| {
        let fields = json!({"temperature": temperature, "seed": seed, "esamp": {"beta": 0}});
        texts(&server.post(COMPLETIONS, &ask(fields)))
    };
    let greedy = said(0.0, 1);
    assert_eq!((said(1e-9, 2), said(9.9e-5, 3)), (greedy.clone(), greedy));
}

#[test]
fn several_prompts_have_their_choices_one_prompt_after_the_other() {
    let server = Server::start(model(), &[]);
    let said = |prompt: Value, seed: u64| {
        let fields = json!({"prompt": prompt, "seed": seed, "n": 2, "logprobs": 0});
        server.post(COMPLETIONS, &ask(fields))
    };
    // Each prompt has the completions that it has alone, with a seed of its own.
    let alone = [said(json!("w5 w6"), 7), said(json!("w9"), 8), said(json!("w5 w6"), 9)];
    let expected: Vec<String> = alone.iter().flat_map(texts).collect();
    for prompts in [json!(["w5 w6", "w9", "w5 w6"]), json!([[5, 6], [9], "w5 w6"])] {
        let answer = said(prompts.clone(), 7);
        assert_eq!(texts(&answer), expected);
        let body = answer.json();
        let indices = body["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]);
        assert!(indices.eq(json!([0, 1, 2, 3, 4, 5]).as_array().unwrap()), "{body}");
        let usage = json!({"prompt_tokens": 5, "completion_tokens": 72, "total_tokens": 77});
        assert_eq!((&body["usage"], &body["esamp"]["seed"]), (&usage, &json!(7)));

        let fields = json!({"prompt": prompts, "seed": 7, "n": 2, "stream": true});
        let (chunks, is_done) = server.post(COMPLETIONS, &ask(fields)).chunks();
        let mut streamed = vec![String::new(); 6];
        for chunk in &chunks {
            let choice = &chunk["choices"][0];
            let at = choice["index"].as_u64().unwrap() as usize;
            streamed[at].push_str(choice["text"].as_str().unwrap());
        }
        assert!(is_done && streamed == expected, "{streamed:?}");
    }
    server.wait_for("requests_open", 0.0);
    // In a group, the prompts share what is learned.
    let grouped = ask(json!({"prompt": ["w5", "w6"], "esamp": {"group": "a"}}));
    assert_eq!(server.post(COMPLETIONS, &grouped).json()["esamp"]["group"]["known"], false);
    let again = server.post(COMPLETIONS, &grouped);
    assert_eq!((texts(&again).len(), &again.json()["esamp"]["group"]["known"]), (2, &json!(true)));
}

#[test]
fn prompts_may_be_texts_tokens_or_lists_of_one() {
    let server = Server::start(model(), &[]);
    let said = |prompt: Value| {
        texts(&server.post(COMPLETIONS, &ask(json!({"prompt": prompt, "seed": 1}))))
    };
    let text = said(json!("w5 w6"));
    for same in [json!([5, 6]), json!(["w5 w6"]), json!([[5, 6]])] {
        assert_eq!(said(same), text);
    }
}

#[test]
fn models_health_page_and_metrics_are_there() {
    let server = Server::start(model(), &[]);
    let models = get(server.address, "/v1/models").json();
    assert_eq!(models["data"][0]["id"], "words");
    let model = get(server.address, "/v1/models/words").json();
    assert_eq!((&model["max_model_len"], &model["weight_bytes"]), (&json!(512), &json!(7)));
    assert_eq!(get(server.address, "/health").json(), json!({"status": "ok"}));
    let page = get(server.address, "/");
    assert!(page.body.contains("data-path=\"/v1/chat/completions\""), "{}", page.body);
    for outside in ["http://", "https://", "src=", "@import", "{model}", "{key}"] {
        assert!(!page.body.contains(outside), "{outside}");
    }
    let metrics = get(server.address, "/metrics");
    assert!(metrics.body.contains("esamp_http_responses_total{path=\"/health\",status=\"200\"} 1"));
    assert_eq!(server.metric("request_duration_seconds_count"), 0.0);
    for stream in [false, true] {
        assert_eq!(server.post(COMPLETIONS, &ask(json!({"n": 2, "stream": stream}))).status, 200);
    }
    server.wait_for("request_duration_seconds_count", 2.0);
    assert_eq!(server.metric("time_to_first_token_seconds_count"), 2.0);
    assert_eq!(server.metric("time_between_tokens_seconds_count"), 44.0); // 11 after the first of each completion
    let [first, whole] = ["time_to_first_token_seconds_sum", "request_duration_seconds_sum"];
    assert!(0.0 < server.metric(first) && server.metric(first) < server.metric(whole));
    let metrics = get(server.address, "/metrics");
    let names = metrics.body.lines().filter(|line| !line.starts_with('#'));
    for line in names {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let bare = name.split('{').next().unwrap();
        let bare = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| bare.strip_suffix(end))
            .unwrap_or(bare);
        assert!(metrics.body.contains(&format!("# TYPE {bare} ")), "{line}");
    }
}
