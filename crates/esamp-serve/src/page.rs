//! The page where one types a prompt and sees plain sampling and ESamp side by side.

use esamp_programs::page::{Document, document, escaped};

use crate::app::App;

/// The page. Its tokens, tints and tooltips are those of `generate --html`.
pub(crate) fn page(app: &App) -> String {
    let path = match &app.texts.template {
        Ok(Some(_)) => "/v1/chat/completions",
        _ => "/v1/completions",
    };
    let key = if app.keys.are_required() {
        "<label>API key <input id=\"key\" type=\"password\" autocomplete=\"off\"></label>\n"
    } else {
        ""
    };
    let most = app.limits.completions;
    let usual_beta = if app.limits.beta > 0.0 { app.limits.beta } else { 0.25 };
    let body = include_str!("page/live.html")
        .replace("{model}", &escaped(&app.model))
        .replace("{path}", path)
        .replace("{key}", key)
        .replace("{most}", &most.to_string())
        .replace("{completions}", &most.min(4).to_string())
        .replace("{beta}", &usual_beta.to_string());
    document(&Document {
        title: &format!("{}: plain and ESamp", app.model),
        body: &body,
        style: include_str!("page/live.css"),
        script: include_str!("page/live.js"),
        connects: true,
    })
}
