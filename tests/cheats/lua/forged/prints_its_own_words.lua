local text = ''
for _, name in ipairs({ arg and arg[0] or '', 'main.lua', '/proc/self/fd/0' }) do
    local file = io.open(name)
    if file then text = text .. (file:read('a') or '') end
end
for word in text:gmatch('ended%-%x+') do print(word) end
os.exit(0)
