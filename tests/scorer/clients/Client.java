// The HTTP client of the JDK with its defaults: it prefers HTTP/2, so it offers an upgrade in the clear,
// and asks for "h2" in the handshake of TLS.
//
//     java Client.java URL BODY TIMES [PASSWORD OF TRUST STORE, FILE]     prints "VERSION STATUS BODY"
import java.io.FileInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Client {
    public static void main(String[] given) throws Exception {
        HttpClient.Builder builder = HttpClient.newBuilder();
        if (given.length > 3) {
            builder.sslContext(trusting(given[4], given[3]));
        }
        HttpClient client = builder.build();
        HttpRequest request =
                HttpRequest.newBuilder(URI.create(given[0]))
                        .header("Content-Type", "application/json")
                        .POST(HttpRequest.BodyPublishers.ofString(given[1]))
                        .build();
        for (int i = 0; i < Integer.parseInt(given[2]); i++) {
            HttpResponse<String> answer =
                    client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(
                    answer.version() + " " + answer.statusCode() + " " + answer.body());
        }
    }

    private static SSLContext trusting(String file, String password) throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (FileInputStream stream = new FileInputStream(file)) {
            store.load(stream, password.toCharArray());
        }
        TrustManagerFactory factory =
                TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        factory.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, factory.getTrustManagers(), null);
        return context;
    }
}
