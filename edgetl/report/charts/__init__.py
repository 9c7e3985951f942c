"""The pictures of a report as inline SVG: colours by CSS class, so they follow the page; each has its text."""
