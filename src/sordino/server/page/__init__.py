"""The web page that `sordino serve` shows at `/`: the same engine and the same library as the API's."""
