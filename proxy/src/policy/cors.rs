//! Cross-origin requests of browsers, as the Fetch standard (§3.2) has them: questions beforehand are answered here,
//! answers get what lets a page see them.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use http::{Method, request};
use weft_xds_proto::resource::route as ir;

use crate::route::matcher::TextMatcher;

/// See [`ir::Cors`].
#[derive(Debug)]
pub struct Cors {
    origins: Box<[TextMatcher]>,
    any_origin: bool,
    methods: List,
    headers: List,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
}

/// Names that are allowed; with `*`, whatever was asked for.
#[derive(Debug)]
struct List {
    any: bool,
    text: Option<HeaderValue>,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Not for a page of another origin, or one that is not allowed: its answer is left alone, and the browser keeps
    /// it from the page.
    Nothing,
    /// Whether it may ask; to be answered at once.
    Preflight(HeaderMap),
    /// For the thing itself, by a page of this origin.
    Actual(HeaderValue),
}

impl Cors {
    /// From a checked configuration.
    ///
    /// # Errors
    /// If a part of it is none after all.
    pub fn new(c: &ir::Cors) -> Result<Self, String> {
        let origins = c.origins.iter().map(TextMatcher::new).collect::<Result<_, _>>()?;
        let any_origin = c.origins.iter().any(|o| matches!(o, ir::StringMatch::Regex(r) if r == ".*"));
        let max_age = c.max_age.map(|age| HeaderValue::from(age.as_secs()));
        Ok(Self {
            origins,
            any_origin,
            methods: List::new(&c.methods)?,
            headers: List::new(&c.headers)?,
            expose: joined(&c.expose)?,
            max_age,
            credentials: c.credentials,
        })
    }

    /// What a request asks for.
    pub fn ask(&self, head: &request::Parts) -> Asked {
        let Some(origin) = head.headers.get(ORIGIN) else { return Asked::Nothing };
        let preflight =
            head.method == Method::OPTIONS && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let allowed = origin.to_str().is_ok_and(|o| self.origins.iter().any(|m| m.matches(o)));
        match (preflight, allowed) {
            (false, false) => Asked::Nothing,
            (false, true) => Asked::Actual(origin.clone()),
            // Without fields that allow something, the browser does not go on.
            (true, false) => Asked::Preflight(HeaderMap::new()),
            (true, true) => Asked::Preflight(self.preflight(origin, &head.headers)),
        }
    }

    fn preflight(&self, origin: &HeaderValue, asked: &HeaderMap) -> HeaderMap {
        let mut answer = HeaderMap::new();
        self.allow(origin, &mut answer);
        let lists = [
            (&self.methods, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_REQUEST_METHOD),
            (&self.headers, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_REQUEST_HEADERS),
        ];
        for (list, allowed, request) in lists {
            // Said by name: with credentials, browsers take `*` for a name.
            let value = if list.any { asked.get(request).cloned() } else { list.text.clone() };
            if let Some(value) = value {
                answer.insert(allowed, value);
            }
        }
        if let Some(age) = &self.max_age {
            answer.insert(ACCESS_CONTROL_MAX_AGE, age.clone());
        }
        answer
    }

    /// Lets a page of this origin see an answer. What the service said of it itself gives way.
    pub fn answer(&self, origin: &HeaderValue, headers: &mut HeaderMap) {
        for name in [ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS] {
            headers.remove(name);
        }
        self.allow(origin, headers);
        if let Some(expose) = &self.expose {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    fn allow(&self, origin: &HeaderValue, headers: &mut HeaderMap) {
        if self.any_origin && !self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        } else {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            // A cache must not give the answer for one origin to another.
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

impl List {
    fn new(names: &[String]) -> Result<Self, String> {
        Ok(Self { any: names.iter().any(|n| n == "*"), text: joined(names)? })
    }
}

fn joined(names: &[String]) -> Result<Option<HeaderValue>, String> {
    let text = names.join(", ");
    let value = (!text.is_empty()).then(|| HeaderValue::try_from(text));
    value.transpose().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn cors(credentials: bool) -> Cors {
        Cors::new(&ir::Cors {
            origins: vec![
                ir::StringMatch::Exact("https://a.test".to_owned()),
                ir::StringMatch::Regex("https://[^/]+\\.b\\.test".to_owned()),
            ],
            methods: vec!["GET".to_owned(), "PUT".to_owned()],
            headers: vec!["*".to_owned()],
            expose: vec!["x-total".to_owned()],
            max_age: Some(std::time::Duration::from_secs(60)),
            credentials,
        })
        .unwrap()
    }

    fn ask(cors: &Cors, method: &str, fields: &[(&str, &str)]) -> Asked {
        let mut request = Request::builder().method(method);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        cors.ask(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn a_question_beforehand_is_answered_with_what_is_allowed() {
        let fields = [
            ("origin", "https://x.b.test"),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-a, x-b"),
        ];
        let Asked::Preflight(answer) = ask(&cors(true), "OPTIONS", &fields) else { panic!("a preflight") };
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_ORIGIN], "https://x.b.test");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_METHODS], "GET, PUT");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_HEADERS], "x-a, x-b");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert_eq!(answer[ACCESS_CONTROL_MAX_AGE], "60");
        assert_eq!(answer[VARY], "origin");
    }

    #[test]
    fn another_origin_is_allowed_nothing() {
        for origin in ["https://evil.test", "https://a.test.evil", "null", "https://b.test"] {
            let fields = [("origin", origin), ("access-control-request-method", "PUT")];
            assert_eq!(ask(&cors(true), "OPTIONS", &fields), Asked::Preflight(HeaderMap::new()), "{origin}");
            assert_eq!(ask(&cors(true), "GET", &[("origin", origin)]), Asked::Nothing);
        }
        assert_eq!(ask(&cors(true), "OPTIONS", &[]), Asked::Nothing, "no page asks");
    }

    #[test]
    fn an_answer_says_which_page_may_see_it() {
        let cors = cors(false);
        let Asked::Actual(origin) = ask(&cors, "OPTIONS", &[("origin", "https://a.test")]) else {
            panic!("no preflight without a method")
        };
        let mut headers =
            HeaderMap::from_iter([(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"))]);
        cors.answer(&origin, &mut headers);
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://a.test");
        assert_eq!(headers[ACCESS_CONTROL_EXPOSE_HEADERS], "x-total");
        assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS));
    }
}
