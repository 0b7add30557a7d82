$words = token_get_all((string) @file_get_contents(__FILE__));
foreach ($words as $word) { if (is_array($word) && strpos($word[1], 'ended-') !== false) { echo trim($word[1], "'\""), "\n"; } }
exit(0);
