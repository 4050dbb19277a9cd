//! gRPC paths as policy files name them: `/package.Service/Method`, and `/package.Service/*` for all methods of one gRPC
//! service. They are the only patterns that there are (DESIGN §6), and are compared byte for byte.

/// Whether it names one method: `/package.Service/Method`. Calls of other paths pass by `/package.Service/*` alone.
pub fn is_method(path: &str) -> bool {
    parts(path).is_some_and(|(service, method)| is_service(service) && is_identifier(method))
}

/// Whether policy files can say it: one method, or all of one gRPC service.
pub fn is_pattern(path: &str) -> bool {
    parts(path).is_some_and(|(service, method)| is_service(service) && (method == "*" || is_identifier(method)))
}

/// Whether a pattern has every path that another one has.
pub fn covers(pattern: &str, other: &str) -> bool {
    pattern == other
        || pattern
            .strip_suffix('*')
            .and_then(|service| other.strip_prefix(service))
            .is_some_and(|method| !method.is_empty() && !method.contains('/'))
}

/// `package.Service`, of protobuf identifiers or what other gRPC stacks put in their place.
pub(crate) fn is_service(text: &str) -> bool {
    text.split('.').all(is_identifier)
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn parts(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.split_once('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_one_path_and_a_pattern_may_be_all_of_a_service() {
        for method in ["/a.B/C", "/B/c", "/a.b-c.D_1/E-f"] {
            assert!(is_method(method) && is_pattern(method), "{method}");
        }
        assert!(is_pattern("/a.B/*") && !is_method("/a.B/*"));
        for neither in ["", "/", "a.B/C", "/a.B", "/a.B/", "//C", "/a..B/C", "/a.B/C/D", "/a.B/C*", "/*/C", "/a.B/é"] {
            assert!(!is_method(neither) && !is_pattern(neither), "{neither}");
        }
    }

    #[test]
    fn a_pattern_covers_itself_and_the_methods_of_its_service() {
        assert!(covers("/a.B/C", "/a.B/C") && covers("/a.B/*", "/a.B/C") && covers("/a.B/*", "/a.B/*"));
        assert!(!covers("/a.B/C", "/a.B/*") && !covers("/a.B/*", "/a.Bb/C") && !covers("/a.B/*", "/a.B/C/D"));
    }
}
