//! JUnit XML as CI systems read it: a suite for each PolicyTest, a case for each of its calls.

use std::collections::HashMap;

use quick_xml::{
    Writer,
    events::{BytesDecl, BytesEnd, BytesStart, BytesText, Event},
};

/// One PolicyTest.
#[derive(Debug)]
pub struct Suite<'a> {
    pub name: &'a str,
    pub cases: Vec<Case>,
}

/// One call.
#[derive(Debug)]
pub struct Case {
    /// What CI systems know it by from run to run: no line numbers.
    pub name: String,
    /// Where it stands.
    pub file: String,
    pub line: String,
    pub seconds: f64,
    /// `None`: it came out as expected.
    pub failure: Option<CaseFailure>,
}

/// A call that did not come out as expected.
#[derive(Debug)]
pub struct CaseFailure {
    /// One line.
    pub message: String,
    /// What came instead: `ALLOWED` or a reason.
    pub kind: String,
    /// As on a terminal.
    pub text: String,
}

/// The report of a whole run.
///
/// # Errors
/// Never, into memory; the writer's own type wants it.
pub fn report(suites: &[Suite<'_>]) -> std::io::Result<String> {
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let all = || suites.iter().flat_map(|suite| &suite.cases);
    writer.write_event(Event::Start(counted("testsuites", "tenon policy test", all())))?;
    for suite in suites {
        writer.write_event(Event::Start(counted("testsuite", suite.name, suite.cases.iter())))?;
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for one in &suite.cases {
            let times = seen.entry(&one.name).or_default();
            *times += 1;
            case(&mut writer, suite.name, one, *times)?;
        }
        writer.write_event(Event::End(BytesEnd::new("testsuite")))?;
    }
    writer.write_event(Event::End(BytesEnd::new("testsuites")))?;
    let mut text = String::from_utf8_lossy(&writer.into_inner()).into_owned();
    text.push('\n');
    Ok(text)
}

fn counted<'c>(
    element: &'static str,
    name: &str,
    cases: impl Iterator<Item = &'c Case> + Clone,
) -> BytesStart<'static> {
    let failures = cases.clone().filter(|case| case.failure.is_some()).count().to_string();
    let time = seconds(cases.clone().map(|case| case.seconds).sum());
    let tests = cases.count().to_string();
    let mut start = BytesStart::new(element);
    for (key, value) in [
        ("name", printable(name).as_str()),
        ("tests", &tests),
        ("failures", &failures),
        ("errors", "0"),
        ("skipped", "0"),
        ("time", &time),
    ] {
        start.push_attribute((key, value));
    }
    start
}

/// The second call of a suite that has the same name is `NAME #2`: names tell cases apart.
fn case(writer: &mut Writer<Vec<u8>>, suite: &str, case: &Case, times: usize) -> std::io::Result<()> {
    let name = if times > 1 { format!("{} #{times}", case.name) } else { case.name.clone() };
    let mut start = BytesStart::new("testcase");
    for (key, value) in [
        ("name", printable(&name).as_str()),
        ("classname", &printable(suite)),
        ("file", &printable(&case.file)),
        ("line", &case.line),
        ("time", &seconds(case.seconds)),
    ] {
        start.push_attribute((key, value));
    }
    let Some(failure) = &case.failure else { return writer.write_event(Event::Empty(start)) };
    writer.write_event(Event::Start(start))?;
    let mut element = BytesStart::new("failure");
    element.push_attribute(("message", printable(&failure.message).as_str()));
    element.push_attribute(("type", printable(&failure.kind).as_str()));
    writer.write_event(Event::Start(element))?;
    writer.write_event(Event::Text(BytesText::new(&printable(&failure.text))))?;
    writer.write_event(Event::End(BytesEnd::new("failure")))?;
    writer.write_event(Event::End(BytesEnd::new("testcase")))
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.6}")
}

/// XML 1.0 has no place for most control characters, escaped or not: U+FFFD stands for each.
fn printable(text: &str) -> String {
    let fits =
        |character| !matches!(character, '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}');
    text.chars().map(|character| if fits(character) { character } else { '\u{fffd}' }).collect()
}

#[cfg(test)]
mod tests {
    use quick_xml::{Reader, events::Event};

    use super::*;

    fn case(name: &str, failure: Option<&str>) -> Case {
        Case {
            name: name.to_owned(),
            file: "tests.yaml".to_owned(),
            line: "7".to_owned(),
            seconds: 0.000_25,
            failure: failure.map(|text| CaseFailure {
                message: text.to_owned(),
                kind: "PATH_NOT_ALLOWED".to_owned(),
                text: text.to_owned(),
            }),
        }
    }

    #[test]
    fn a_report_has_what_ci_systems_look_for() {
        let cases = vec![case("a -> b /c.D/E", None), case("a -> b /c.D/E", Some("- ALLOWED\n+ PATH_NOT_ALLOWED"))];
        let text = report(&[Suite { name: "reading", cases }]).unwrap();
        let expected = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="tenon policy test" tests="2" failures="1" errors="0" skipped="0" time="0.000500">
  <testsuite name="reading" tests="2" failures="1" errors="0" skipped="0" time="0.000500">
    <testcase name="a -&gt; b /c.D/E" classname="reading" file="tests.yaml" line="7" time="0.000250"/>
    <testcase name="a -&gt; b /c.D/E #2" classname="reading" file="tests.yaml" line="7" time="0.000250">
      <failure message="- ALLOWED&#10;+ PATH_NOT_ALLOWED" type="PATH_NOT_ALLOWED">- ALLOWED
+ PATH_NOT_ALLOWED</failure>
    </testcase>
  </testsuite>
</testsuites>
"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn no_text_of_a_test_breaks_out_of_the_report() {
        let evil = "]]>\"'<failure>&amp;\u{1}\u{0}\u{ffff}\u{1b}[31m\r\n\t";
        let text = report(&[Suite { name: evil, cases: vec![case(evil, Some(evil))] }]).unwrap();
        let mut reader = Reader::from_str(&text);
        let (mut failures, mut depth) = (0, 0);
        loop {
            let event = reader.read_event().unwrap();
            if let Event::Start(element) = &event {
                depth += 1;
                failures += usize::from(element.name().as_ref() == "failure");
                assert!(element.attributes().all(|attribute| attribute.is_ok()), "{text}");
            }
            depth -= i32::from(matches!(event, Event::End(_)));
            if event == Event::Eof {
                break;
            }
        }
        assert_eq!((failures, depth), (1, 0), "{text}");
        let control = |character: char| character.is_control() && !matches!(character, '\n' | '\r' | '\t');
        assert!(!text.contains(control) && !text.contains('\u{ffff}'), "{text}");
    }
}
