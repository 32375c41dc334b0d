"""What all dashboard pages share: the theme, lists without counting, parts that refresh, who acts."""
