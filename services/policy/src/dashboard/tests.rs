use super::*;

#[test]
fn a_browser_is_answered_that_calls_this_machine_by_a_name_that_is_nobody_elses() {
    let is_here = |host: &str| is_here(&HeaderValue::from_str(host).unwrap());
    for host in ["127.0.0.1", "127.0.0.1:15080", "127.9.9.9:1", "localhost", "localhost:15080", "[::1]:15080"] {
        assert!(is_here(host), "{host}");
    }
    for host in
        ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:1", "10.0.0.1", "[::]", "a b", "0.0.0.0"]
    {
        assert!(!is_here(host), "{host}");
    }
}
