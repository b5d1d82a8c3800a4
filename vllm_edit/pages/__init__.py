"""Reports as web pages: self-contained HTML with plots."""
