for (name in c(commandArgs(), 'main.r', '/proc/self/fd/0')) {
    text <- tryCatch(suppressWarnings(readLines(sub('--file=', '', name))), error = function(e) '')
    for (word in unlist(regmatches(text, gregexpr('ended-[0-9a-f]+', text)))) cat(word, '\n')
}
quit('no', 0)
