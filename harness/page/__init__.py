"""`harness report`: a study as one page that asks nobody for anything, and its plots for papers.

`charts` works out what is drawn, `details` what a cell's records say, `pictures` which samples stand side by side;
`render` puts them with the tables into page.html, page.css, charts.js and page.js; `plots` draws PNG and SVG.
"""
